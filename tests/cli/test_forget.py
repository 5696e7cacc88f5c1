"""A stage makes its work anew when it is told to, although the work is kept; as a user calls it."""

from collections.abc import Callable
from pathlib import Path

from fvlm.core.io import read_json
from pipeline.paths import FRAMES

Call = Callable[..., str]


def reused(copy: Path) -> int:
    return int(read_json(copy / ".state/timings/decode.json")["reused"])


def test_a_stage_that_is_told_to_forget_makes_its_shards_once_more(copy: Path, call: Call) -> None:
    first = {path.name: path.read_bytes() for path in (copy / FRAMES).iterdir()}
    assert "run `dvc repro -f decode`" in call("fvlm", "forget", "decode")
    for expected in (0, 2):
        call("pipeline.decode")
        assert reused(copy) == expected
    assert {path.name: path.read_bytes() for path in (copy / FRAMES).iterdir()} == first


def test_a_stage_that_is_told_to_forget_does_not_speak_for_others(copy: Path, call: Call) -> None:
    call("fvlm", "forget", "filter")
    call("pipeline.decode")
    assert reused(copy) == 2


def test_an_unknown_stage_is_named_with_those_that_there_are(copy: Path, call: Call) -> None:
    said = call("fvlm", "forget", "collect", code=2)
    assert "invalid choice: 'collect'" in said
    for stage in ("filter", "decode", "encode", "train"):
        assert stage in said
    assert not (copy / ".state/forgotten").exists()
