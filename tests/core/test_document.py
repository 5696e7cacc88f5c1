"""What is written flat is read back as it was, and nothing else is read."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import SkipValidation, ValidationError

from fvlm.core.document import (
    Document,
    flatten,
    read_document,
    read_flat,
    write_document,
    write_figures,
)
from fvlm.core.errors import FvlmError
from fvlm.core.io import read_json

FILE = Path("metrics/found.json")


class Range(Document):
    value: Annotated[float | None, "{}"]
    low: Annotated[float | None, "{}_low"] = None


class Arm(Document):
    loss: Annotated[float, "loss_{}"]
    ratio: Annotated[Range | None, "{}_ratio"] = None


class Looks(Document):
    sharpness: float
    title: SkipValidation[str] = ""


class Result(Document):
    name: str
    ratio: Range
    arms: dict[str, Arm]
    seeds: Annotated[dict[int, Range], "ratio_seed_{}"]
    looks: Looks | None = None


RESULT = Result(
    name="x",
    ratio=Range(value=1.5, low=None),
    arms={"fine": Arm(loss=0.2), "static_in_fine": Arm(loss=0.3, ratio=Range(value=1.1, low=1))},
    seeds={3: Range(value=1.4, low=1.2), 11: Range(value=1.6, low=1.3)},
)
FLAT: dict[str, Any] = {
    "name": "x",
    "ratio": 1.5,
    "ratio_low": None,
    "loss_fine": 0.2,
    "loss_static_in_fine": 0.3,
    "static_in_fine_ratio": 1.1,
    "static_in_fine_ratio_low": 1.0,
    "ratio_seed_3": 1.4,
    "ratio_seed_3_low": 1.2,
    "ratio_seed_11": 1.6,
    "ratio_seed_11_low": 1.3,
}


def test_names_come_from_the_templates_in_the_order_of_the_fields() -> None:
    assert list(flatten(RESULT).items()) == list(FLAT.items())
    assert flatten(Looks(sharpness=1)) == {"sharpness": 1, "title": ""}


def test_what_was_written_is_read_back() -> None:
    assert read_flat(Result, FLAT, FILE) == RESULT
    looking = RESULT.model_copy(update={"looks": Looks(sharpness=2)})
    assert read_flat(Result, flatten(looking), FILE) == looking
    with pytest.raises(ValidationError):
        RESULT.name = "y"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_fine": "many"}, r"arms.fine.loss: Input should be a valid number"),
        ({"ratio": float("nan")}, r"ratio.value: Input should be a finite number"),
        ({"sharpness_of_old": 1}, r"unknown: sharpness_of_old"),
        ({"loss_fine": ..., "loss_static_in_fine": ...}, "unknown: static_in_fine_ratio"),
        ({"name": ...}, r"name: Field required"),
    ],
)
def test_other_figures_are_refused(changes: dict[str, Any], message: str) -> None:
    figures = {name: value for name, value in (FLAT | changes).items() if value is not ...}
    with pytest.raises(FvlmError, match=rf"metrics/found.json was made by other code .*{message}"):
        read_flat(Result, figures, FILE)


def test_figures_for_people_have_four_digits_and_documents_all(tmp_path: Path) -> None:
    found = Range(value=1 / 3, low=1.00012)
    write_document(tmp_path / "full.json", found)
    assert read_document(Range, tmp_path / "full.json") == found
    write_figures(tmp_path / "rounded.json", found)
    assert read_json(tmp_path / "rounded.json") == {"": 0.3333, "_low": 1.0}
    counted = {"clips": 123456, "seen": True, "rate": 12345.6, "none": None, "name": "1.23456"}
    write_figures(tmp_path / "counted.json", counted)
    assert read_json(tmp_path / "counted.json") == counted | {"rate": 12350.0}
    write_figures(tmp_path / "again.json", read_json(tmp_path / "counted.json"))
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "counted.json").read_bytes()
