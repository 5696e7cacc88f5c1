"""What a message tells the user to run, run: afterwards the message is gone.

The command is taken out of the message as it is printed. Where DVC could take a result for up to
date, the result is committed as it is, so that a command DVC sees no reason for would not do.
"""

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.imports import MODULES, ROOT
from tests.projects import Run
from tests.tiny import dinov2, set_params, vae

Spoil = Callable[[Path, Run], object]
COMMAND = re.compile(r"`((?:dvc|python) [^`]*)`")
ENCODED, FRAMES, MODEL = Path("data/encode"), Path("data/decode"), Path("models/foveated")

LOAD = "from fvlm.model.saved import load_model; load_model('models/foveated')"
BOTH = (
    "from pathlib import Path; from fvlm.clips.reader import open_clips; open_clips("
    "Path('data/encode'), Path('data/decode'), split='train', input='frames', tokenizer=None)"
)
OPEN = "import os; from pathlib import Path; from fvlm.shards.read import open_shards; out = Path("
OPEN += "'data/{}'); reader = open_shards(out, split='train'); "
IN_USE = " [os.remove(path) for path in out.glob('train-*')]; reader.read([0], fields=('tokens',))"
ASK = (
    "from pathlib import Path; from fvlm.clips.questions import read_questions; "
    "read_questions(Path('data/questions/questions.jsonl'), [])"
)
SENT = (
    "import sqlite3; assert sqlite3.connect('mlflow.db').execute('select count(*) from metrics "
    'where key like "%loss%"\').fetchone()[0]'
)


@dataclass(frozen=True)
class Case:
    """module: has the message. spoil: makes the situation. show: a command, or Python, that meets
    it. says: part of the message. again: what works afterwards, if it is not `show`.
    """

    module: str
    says: str
    show: str
    spoil: Spoil
    again: str = ""


def put(path: Path, content: bytes) -> None:
    """As a new file: the old one may be a link into DVC's cache."""
    path.unlink()
    path.write_bytes(content)


def edit(name: str | Path, change: Callable[[str], str], *, commit: str = "") -> Spoil:
    """Change a file, and have DVC take the result of the stage `commit` for up to date."""

    def spoil(workspace: Path, run: Run) -> None:
        path = workspace / name
        put(path, change(path.read_text()).encode())
        if commit:
            run("dvc", "commit", "-q", "-f", commit)

    return spoil


def damage(folder: Path) -> Spoil:
    """Change a byte of a shard, in DVC's cache as well: they are one file."""

    def spoil(workspace: Path, _: Run) -> None:
        shard = next((workspace / folder).glob("train-*.tar"))
        content = bytearray(shard.read_bytes())
        content[1000] ^= 1
        shard.chmod(0o644)
        shard.write_bytes(content)
        shard.chmod(0o444)

    return spoil


def remove(pattern: str) -> Spoil:
    def spoil(workspace: Path, _: Run) -> None:
        for path in list(workspace.glob(pattern)):
            path.unlink()

    return spoil


def change(section: str, key: str, value: object, *then: str) -> Spoil:
    """Another parameter, and stages that are run with it, alone."""

    def spoil(workspace: Path, run: Run) -> None:
        set_params(workspace, {section: {key: value}})
        for stage in then:
            run("dvc", "repro", "-f", "-s", stage)

    return spoil


def other_weights(workspace: Path, _: Run) -> None:
    """Of both encoders, in their folders."""
    torch.manual_seed(1)  # not that of the first ones
    dinov2(image_size=32, patch_size=8).save_pretrained(workspace / "weights" / "dino")
    vae(8, 8, 8, 8).save_pretrained(workspace / "weights" / "vae")


def other_weights_to_train_with(workspace: Path, run: Run) -> None:
    """They do not matter to a training that is handed back."""
    other_weights(workspace, run)
    run("python", "-m", "fvlm", "forget", "train")


def other_code(workspace: Path, run: Run) -> None:
    """Under which the weights mean something else."""
    edit("fvlm/model/film_head.py", lambda text: text.replace("return ", "return 2 * ", 1))(
        workspace, run
    )


def reformat(text: str) -> str:
    return json.dumps(json.loads(text) | {"format": "older"})


def one_figure_more(text: str) -> str:
    return json.dumps(json.loads(text) | {"surprise": 1.0})


def cut(text: str) -> str:
    return text[:-20]


CASES = [
    Case("model/saved", "expected", LOAD, edit(MODEL / "config.json", reformat, commit="train")),
    Case("model/saved", "was trained by other code", LOAD, other_code),
    Case(
        "model/build",
        "made with other weights",
        "dvc repro -f -s train",
        other_weights_to_train_with,
    ),
    Case("report", "made with other weights", "dvc repro -f -s report", other_weights),
    Case(
        "clips/reader",
        "do not hold the same clips",
        BOTH,
        change("filter", "max_seconds", 4.75, "filter", "decode"),
    ),
    Case(
        "clips/reader",
        "the decode shards hold 5 frames",
        BOTH,
        change("decode", "num_frames", 5, "decode"),
    ),
    Case(
        "core/params",
        "decode.num_frames is 5",
        "dvc repro -f -s encode",
        change("decode", "num_frames", 5),
    ),
    Case(
        "core/params",
        "encode.batch_frames is 6",
        "dvc repro -f -s train",
        change("encode", "batch_frames", 6),
    ),
    Case(
        "cli/export",
        "is of other weights than",
        "rm -rf out; python -m fvlm export out",
        change("train", "lr", 0.002, "train"),
    ),
    Case(
        "tracking/sender",
        "Training is not affected",
        "MLFLOW_TRACKING_URI=http://127.0.0.1:9 dvc repro -f -s train",
        remove("mlflow.db"),
        again=SENT,
    ),
    Case(
        "core/document",
        "was made by other code (unknown",
        "python -m fvlm verdict",
        edit("data/evaluation.json", one_figure_more),
    ),
    Case(
        "core/document",
        "was made by other code (",
        "python -m fvlm verdict",
        edit("data/evaluation.json", lambda _: "{}"),
    ),
    Case("core/io", "not found", "python -m fvlm verdict", remove("metrics/*.json")),
    Case("core/io", "not found", "python -m pipeline.decode", remove("data/filter/*")),
    Case("clips/questions", "not found", ASK, remove("data/questions/*")),
    Case("shards/manifest", "not found", OPEN.format("decode"), remove("data/decode/*.json")),
    Case(
        "shards/manifest",
        "is damaged",
        OPEN.format("decode"),
        edit(FRAMES / "manifest.json", cut, commit="decode"),
    ),
    Case(
        "shards/manifest",
        "is damaged",
        OPEN.format("encode"),
        edit(ENCODED / "manifest.json", cut, commit="encode"),
    ),
    Case("shards/verify", "is damaged: ", OPEN.format("decode"), damage(FRAMES)),
    Case("shards/verify", "is missing", OPEN.format("encode"), remove("data/encode/train-*")),
    Case(
        "shards/read",
        "vanished while it was in use",
        OPEN.format("encode") + IN_USE,
        lambda *_: None,
        again=OPEN.format("encode") + "reader.read([0], fields=('tokens',))",
    ),
    Case(
        "cli/forget",
        "is not handed back",
        "python -m fvlm forget encode",
        lambda *_: None,
        again="import os; assert not os.path.exists('.state/forgotten/encode')",
    ),
]
# Said while the stages run: test_dvc.py has these.
ELSEWHERE = {("collect", "dvc repro -f -s STAGE && dvc repro")}
ELSEWHERE |= {("decode", "dvc repro -f -s STAGE && dvc repro")}
# Of a place that the user named, and of weights that changed: test_hub.py and test_export.py.
ELSEWHERE |= {("model/hub", "dvc repro"), ("cli/export", "dvc repro")}
# Of captions that are not there, and of tokens: tests/clips/test_text.py and test_encode.py.
ELSEWHERE |= {("clips/text", "dvc repro filter"), ("clips/reader", "dvc repro")}
# Of a model that answers no questions, in whose place another is trained: test_predict.py.
ELSEWHERE |= {(module, "dvc repro answers/dvc.yaml") for module in ("quiz", "cli/predict")}
# Of a baseline that was not trained: test_instruct.py.
ELSEWHERE |= {("instruct", "dvc repro")}
EXPECTED = {
    "clips/questions": {"dvc repro filter"},
    "core/document": {"dvc repro"},
    "core/io": {"dvc repro"},
    "shards/manifest": {"dvc repro", "dvc repro -f -s STAGE"},
    "shards/verify": {"dvc checkout", "dvc repro", "dvc repro -f -s STAGE"},
    "shards/read": {"dvc checkout"},
    "cli/forget": {"dvc repro -f STAGE"},
}


def general(command: str) -> str:
    """With STAGE for any stage."""
    return re.sub(r"(-[fs]) (\w+|\{\})", r"\1 STAGE", command)


def test_every_command_of_a_message_is_in_the_table() -> None:
    found = set()
    for module, path in MODULES.items():
        if not path.is_relative_to(ROOT / "fvlm") and not path.is_relative_to(ROOT / "pipeline"):
            continue
        tree = ast.parse(path.read_text())
        told = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr | ast.Constant) and node not in told:
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                text = "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts
                )
                name = "/".join(module.split(".")[1:])
                found |= {(name, general(command)) for command in COMMAND.findall(text)}
    modules = {case.module for case in CASES}
    listed = {
        (module, command)
        for module in modules
        for command in EXPECTED.get(module, {"dvc repro -f -s STAGE"})
    }
    assert found == listed | ELSEWHERE


@pytest.fixture(scope="module")
def results(workspace: Path, run: Run) -> None:
    """The whole pipeline has run, and its results are committed."""
    with (workspace / ".gitignore").open("a") as file:
        file.write("/out/\n")
    run("dvc", "repro")
    run("git", "add", ".")
    run("git", "commit", "-q", "-m", "results")


def call(run: Run, command: str, *, code: int = 0) -> str:
    """A command of the shell, or Python."""
    if re.match(r"(dvc|python|rm|MLFLOW\w+=\S+) ", command):
        return run("sh", "-c", command, code=code)
    return run("python", "-c", command, code=code)


def meet(run: Run, case: Case) -> list[str]:
    """The commands that the message tells to run."""
    works = case.module in ("tracking/sender", "cli/forget")
    code = 0 if works else 255 if case.show.startswith("dvc") else 1
    said = call(run, case.show, code=code)
    assert case.says in said, said
    line = said[said.rindex(case.says) :].split("\n")[0]  # DVC recommends things of its own
    return COMMAND.findall(line)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.module}: {case.says}")
@pytest.mark.usefixtures("results", "restored")
def test_what_a_message_tells_to_run_cures_it(workspace: Path, run: Run, case: Case) -> None:
    case.spoil(workspace, run)
    commands = meet(run, case)
    assert {general(command) for command in commands} <= EXPECTED.get(
        case.module, {"dvc repro -f -s STAGE"}
    )
    assert commands
    for place, command in enumerate(commands):  # each of them by itself
        if place:
            case.spoil(workspace, run)
            assert command in meet(run, case)
        run("sh", "-c", command)
        assert case.says not in call(run, case.again or case.show)
