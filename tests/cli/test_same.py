"""An edit that changes no byte is shown to, and one that does is refused; as a user calls it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fvlm.core.io import read_json, read_jsonl
from pipeline.paths import FRAMES

Call = Callable[..., str]
SAME = ("fvlm", "same")
HANDED_BACK = "decode: 2 of 2 shards handed back"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def edit_words(copy: Path) -> None:
    """Behind both stages, without effect."""
    edit(copy / "fvlm/video/container.py", "BUFFER_BYTES = 2**16", "BUFFER_BYTES = 65536")


def edit_pixels(copy: Path) -> None:
    old, new = '{"frames": np.stack(found)}', '{"frames": np.stack(found) // 2}'
    edit(copy / "fvlm/video/decode.py", old, new)


def made_by(copy: Path) -> str:
    return str(read_json(copy / FRAMES / "manifest.json")["made_by"])


def test_shards_of_equal_bytes_are_handed_back_after_the_edit(copy: Path, call: Call) -> None:
    first = made_by(copy)
    edit_words(copy)
    said = call(*SAME, "decode")
    assert "decode: 2 of 2 shards made again: equal bytes; commit same.jsonl" in said
    (row,) = read_jsonl(copy / "same.jsonl")
    assert (row["stage"], row["old"]) == ("decode", first)
    assert row["new"] != first
    assert row["evidence"] == "2 of 2 shards made again: equal bytes"
    assert HANDED_BACK in call("pipeline.decode")
    assert made_by(copy) == first


def test_without_the_command_shards_are_made_anew(copy: Path, call: Call) -> None:
    first = made_by(copy)
    assert HANDED_BACK in call("pipeline.decode")
    edit_words(copy)
    assert "handed back" not in call("pipeline.decode")
    assert made_by(copy) != first


def test_probes_of_equal_facts_count_after_the_edit(copy: Path, call: Call) -> None:
    before = {path.name: path.read_bytes() for path in copy.glob(".state/probe/*")}
    edit_words(copy)
    assert "filter: 2 videos probed again: equal bytes" in call(*SAME, "filter")
    call("pipeline.filter")
    after = {path.name: path.read_bytes() for path in copy.glob(".state/probe/*")}
    assert after == before  # no other record was begun


def test_other_bytes_are_refused(copy: Path, call: Call) -> None:
    edit_pixels(copy)
    said = call(*SAME, "decode", code=1)
    assert "error: 2 of 2 differ, such as t" in said
    assert "this edit changes results" in said
    assert not (copy / "same.jsonl").exists()
    assert "handed back" not in call("pipeline.decode")


def test_trust_is_on_record(copy: Path, call: Call) -> None:
    """It compares nothing: the bytes do differ here."""
    edit_pixels(copy)
    call(*SAME, "decode", "--trust")
    (row,) = read_jsonl(copy / "same.jsonl")
    assert row["evidence"] == "trusted"
    assert row["who"] == "test test@example.org"
    assert HANDED_BACK in call("pipeline.decode")


@pytest.mark.parametrize("stage", ["filter", "decode"])
def test_without_an_edit_there_is_nothing_to_join(copy: Path, call: Call, stage: str) -> None:
    assert f"{stage}: what is there was made by this very code" in call(*SAME, stage)
    assert not (copy / "same.jsonl").exists()
