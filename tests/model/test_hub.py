"""A saved model comes from and goes to a model hub: a real server on this machine, real folders."""

import base64
import hashlib
import inspect
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin

from fvlm import load_model
from fvlm.core.errors import CheckpointError
from fvlm.core.io import read_json, sha256_file, write_json
from fvlm.model.build import model_of
from fvlm.model.foveated import FoveatedModel
from fvlm.model.hub import CARD, CONFIG, WEIGHTS
from fvlm.model.saved import TrainedModel
from tests import tiny

COMMIT = "0123456789abcdef" * 2 + "01234567"


class Hub(ThreadingHTTPServer):
    """The few routes of a model hub that up- and downloads ask for.

    repositories: files by name, of each repository; gated: those that nobody may read.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Routes)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Routes(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner, name, action, _, *path = parts[2:] if api else parts
        repository = f"{owner}/{name}"
        files = self.server.repositories.get(repository)
        if repository in self.server.gated and not api:
            self._answer({}, 403, {"X-Error-Code": "GatedRepo"})
        elif files is None:
            self._answer({}, 401, {"X-Error-Code": "RepoNotFound"})
        elif action == "revision" and parts[5] not in ("main", COMMIT):
            self._answer({}, 404, {"X-Error-Code": "RevisionNotFound"})
        elif action == "revision":
            self._answer({"id": repository, "sha": COMMIT})
        elif action == "tree":
            facts = {"type": "file", "oid": "0" * 40}
            self._answer([facts | {"path": k, "size": len(v)} for k, v in files.items()])
        else:
            content = files["/".join(path)]
            digest = hashlib.sha256(content).hexdigest()
            self._send(content, 200, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        action = self.path.split("?")[0].split("/")[-2:]
        self.server.asked.append(self.path)
        if self.path == "/api/repos/create":
            asked = json.loads(content)
            repository = f"{asked.get('organization')}/{asked['name']}"
            self.server.repositories.setdefault(repository, {})
            self._answer({"name": repository, "url": f"{self.server.address}/{repository}"})
        elif action[0] == "preupload":
            paths = [file["path"] for file in json.loads(content)["files"]]
            known = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": path} | known for path in paths]})
        elif action[0] == "commit":
            repository = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    data = base64.b64decode(value["content"])
                    self.server.repositories[repository][value["path"]] = data
            url = f"{self.server.address}/{repository}/commit/{COMMIT}"
            self._answer({"success": True, "commitOid": COMMIT, "commitUrl": url})
        else:
            self._answer({})  # validate-yaml

    def _answer(self, value: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        headers = {"Content-Type": "application/json"} | (headers or {})
        self._send(json.dumps(value).encode(), code, headers)

    def _send(self, content: bytes, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that `huggingface_hub` talks to, as HF_ENDPOINT and HF_HOME set it, with no files."""
    with Hub() as server:
        settings = {
            "ENDPOINT": server.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.address
            + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
            "HF_TOKEN_PATH": str(tmp_path / "no token"),
        }
        for name, value in settings.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.chdir(tmp_path)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model with text, its card, and an encoder beside it."""
    folder = tmp_path / "saved"
    architecture = tiny.architecture(query_layers=1)
    model = model_of(architecture, FoveatedModel)
    tiny.save_model(model, architecture, folder)
    (folder / CARD).write_text(f"---\nlicense: mit\n---\n\nThe card of {folder}.\n")
    (folder / "vae").mkdir()
    (folder / "vae" / CONFIG).write_text("{}")
    (folder / "notes.txt").write_text("of no model")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "notes.txt")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    found, expected = one.state_dict(), other.state_dict()
    return found.keys() == expected.keys() and all(
        torch.equal(value, expected[name]) for name, value in found.items()
    )


def test_the_methods_are_those_of_huggingface_hub(folder: Path) -> None:
    model = load_model(folder)
    assert isinstance(model, PyTorchModelHubMixin)
    for name in ("save_pretrained", "push_to_hub"):
        assert getattr(TrainedModel, name) is getattr(PyTorchModelHubMixin, name)
    own, theirs = (
        {name: p.replace(annotation=p.empty) for name, p in found.parameters.items()}
        for found in map(
            inspect.signature, (TrainedModel.from_pretrained, PyTorchModelHubMixin.from_pretrained)
        )
    )
    assert own == theirs
    assert not model.training


def test_saved_again_it_is_the_same_to_the_byte(folder: Path, tmp_path: Path) -> None:
    model = TrainedModel.from_pretrained(folder, map_location="cpu")
    model.save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    model.save_pretrained(folder)  # in place
    assert contents(tmp_path / "again") == contents(folder)


def test_changed_weights_have_neither_the_card_nor_the_name_of_the_old_ones(
    folder: Path, tmp_path: Path
) -> None:
    model, again = load_model(folder), tmp_path / "again"
    torch.nn.init.ones_(model.q_static)
    model.save_pretrained(again)
    assert same(load_model(again), model)
    config = read_json(again / CONFIG)
    assert (config["training"], read_json(folder / CONFIG)["training"]) == ("", "tiny")
    assert config["weights_sha256"] == sha256_file(again / WEIGHTS)
    card = ModelCard.load(again / CARD)
    assert "The card of" not in card.text
    assert (card.data.library_name, card.data.pipeline_tag) == ("fvlm", "video-to-video")


def test_pushed_and_loaded_by_its_id(hub: Hub, folder: Path) -> None:
    model = load_model(folder)
    url = model.push_to_hub("owner/name", token="hf_x")
    assert "owner/name" in url
    assert hub.repositories["owner/name"] == contents(folder)
    hub.repositories["owner/name"]["modeling.py"] = b"raise SystemExit('remote code')"
    loaded = load_model("owner/name")
    assert same(loaded, model)
    assert loaded.config == model.config
    assert not [path for path in hub.asked if "resolve" in path and "modeling.py" in path]
    assert same(TrainedModel.from_pretrained("owner/name", revision=COMMIT), model)
    hub.shutdown()
    hub.server_close()
    assert same(load_model("owner/name"), model)  # from the cache
    assert same(TrainedModel.from_pretrained("owner/name", local_files_only=True), model)


def test_a_folder_wins_over_an_id(hub: Hub, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "owner").mkdir()
    folder.rename(tmp_path / "owner/name")
    load_model("owner/name")
    assert hub.asked == []


def test_what_cannot_be_had_is_told_in_words(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories = {"a/gated": contents(folder), "a/empty": {"README.md": b"nothing"}}
    hub.repositories |= {"a/other": {CONFIG: b"{}", WEIGHTS: b""}, "a/model": contents(folder)}
    hub.gated = {"a/gated"}
    for source, message in {
        "a/absent": "a/absent: no such folder .* and the model hub has no such repository, or it",
        "a/gated": f"a/gated: .*to whom its owner gave access: ask for it at {hub.address}/a/gated",
        "a/empty": r"a/empty: the repository holds no config.json and no model.safetensors: it is",
        "a/other": r"config.json: format None, expected \d",
        "a--b/c..d": "a--b/c..d: no such folder .*, and no hub id",
        "name": "name: no such folder .*; `dvc repro` trains a model",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            load_model(source)
    with pytest.raises(CheckpointError, match="a/model: the repository has no revision 'v9'"):
        TrainedModel.from_pretrained("a/model", revision="v9")
    asked = len(hub.asked)
    with pytest.raises(CheckpointError, match=r"a/b: no such folder"):
        load_model(Path("a/b"))  # a path is no id
    assert len(hub.asked) == asked
    hub.shutdown()
    hub.server_close()
    with pytest.raises(CheckpointError, match="not in the local cache, and the model hub cannot"):
        load_model("a/absent")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"not in the local cache; HF_HUB_OFFLINE forbids"):
        load_model("a/absent")


def test_damage_in_a_repository_is_noticed(hub: Hub, folder: Path) -> None:
    files = contents(folder)
    content = bytearray(files[WEIGHTS])
    content[-9] ^= 1
    hub.repositories["a/damaged"] = files | {WEIGHTS: bytes(content)}
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        load_model("a/damaged")
    write_json(folder / CONFIG, read_json(folder / CONFIG) | {"model": {"llm": "x"}})
    with pytest.raises(CheckpointError, match=r"config\.json is invalid"):
        load_model(folder)
