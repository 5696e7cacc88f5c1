import re
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import Field, model_validator

from fvlm.core.errors import ParamsError
from fvlm.core.params import Params, load_params, read_yaml
from fvlm.model.foveated import ModelParams
from fvlm.training.optim import TrainParams

REAL = Path(__file__).parents[2] / "params.yaml"


class Inner(Params):
    batch_size: int = Field(ge=1)
    lr: float = Field(gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    name: str = "a"


class Outer(Params):
    train: Inner


class Checked(Params):
    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> "Checked":
        if self.low > self.high:
            raise ValueError(f"low must be <= high ({self.high}), got {self.low}")
        return self


class CheckedSection(Params):
    filter: Checked


def load(tmp_path: Path, text: str) -> Inner:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return load_params(Outer, path).train


def fault(tmp_path: Path, text: str) -> str:
    with pytest.raises(ParamsError) as error:
        load(tmp_path, text)
    return str(error.value)


def test_all_faults_are_reported_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    text = "train:\n  batch_sise: 3\n  batch_size: 64.5\n  lr: -1\n  dtype: float16\n  name: 7\n"
    assert fault(tmp_path, text).splitlines() == [
        f"{tmp_path / 'params.yaml'} is invalid:",
        "  train.batch_size: expected int, got 64.5",
        "  train.lr: must be greater than 0, got -1",
        "  train.dtype: must be 'float32' or 'bfloat16', got 'float16'",
        "  train.name: expected text, got 7",
        "  train.batch_sise: unknown key; did you mean `batch_size`?",
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("64.5", "train.batch_size: expected int, got 64.5"),
        ("'64'", "train.batch_size: expected int, got '64'"),
        ("true", "train.batch_size: expected int, got True"),
        ("null", "train.batch_size: expected int, got None"),
        ("0", "train.batch_size: must be greater than or equal to 1, got 0"),
    ],
)
def test_a_wrong_integer_is_refused(tmp_path: Path, value: str, message: str) -> None:
    assert message in fault(tmp_path, f"train: {{batch_size: {value}, lr: 1}}")


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001"])
def test_scientific_notation_is_a_number(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, f"train: {{batch_size: 1, lr: {text}}}").lr == 1e-4


def test_a_whole_number_serves_as_a_float(tmp_path: Path) -> None:
    assert load(tmp_path, "train: {batch_size: 1, lr: 1}").lr == 1.0


@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_numbers_must_be_finite(tmp_path: Path, value: str) -> None:
    assert "train.lr: must be a finite number" in fault(
        tmp_path, f"train: {{batch_size: 1, lr: {value}}}"
    )


def test_missing_keys_and_sections_are_named(tmp_path: Path) -> None:
    assert "train.lr: missing" in fault(tmp_path, "train: {batch_size: 1}")
    assert "  train: missing" in fault(tmp_path, "other: {}")


@pytest.mark.parametrize("value", ["null", "[1]", "7"])
def test_a_section_must_hold_keys(tmp_path: Path, value: str) -> None:
    assert "train: expected a section of key: value, got" in fault(tmp_path, f"train: {value}")


def test_a_key_of_an_earlier_version_is_told_its_new_name(tmp_path: Path) -> None:
    message = fault(tmp_path, "train: {batch_size: 1, lr: 1, clip_norm: 1.0}")
    assert message.endswith("train.clip_norm: this key is called `max_grad_norm` now")


def test_an_unknown_key_far_from_all_gets_no_hint(tmp_path: Path) -> None:
    message = fault(tmp_path, "train: {batch_size: 1, lr: 1, zzz: 1}")
    assert message.endswith("train.zzz: unknown key")


def test_a_rule_between_keys_names_its_section(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("filter: {low: 5, high: 2}")
    with pytest.raises(ParamsError, match=r"filter: low must be <= high \(2\), got 5"):
        load_params(CheckedSection, path)


@pytest.mark.parametrize(
    "text", ["train: [", "- 1", "", "train: {a: 1, a: 2}", "train: \x00", "\ttrain: 1"]
)
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=r"params\.yaml"):
        read_yaml(path)


def test_bytes_that_are_no_text_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(ParamsError, match="not found"):
        read_yaml(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ParamsError, match="not valid YAML"):
        read_yaml(path)


def test_sections_that_are_not_asked_for_are_not_checked(tmp_path: Path) -> None:
    assert load(tmp_path, "train: {batch_size: 1, lr: 1}\nelse: [not, ours]").batch_size == 1


def test_params_are_frozen(tmp_path: Path) -> None:
    params = load(tmp_path, "train: {batch_size: 1, lr: 1}")
    with pytest.raises(ValueError, match="frozen"):
        params.lr = 2.0


class TrainSections(Params):
    model: ModelParams
    train: TrainParams


def test_the_shipped_defaults_are_valid() -> None:
    sections = load_params(TrainSections, REAL)
    assert set(read_yaml(REAL)["model"]) == set(ModelParams.model_fields)
    assert set(read_yaml(REAL)["train"]) == set(TrainParams.model_fields)
    assert sections.train.lambda_coarse > 0, "an untrained coarse pass makes the ratio meaningless"


def uncommented(node: yaml.MappingNode, lines: list[str]) -> list[str]:
    """Keys, at any depth, behind whose value (or else behind whose name) no words stand.

    Words above a section inside another speak of all that is in it.
    """
    found: list[str] = []
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode):
            above = lines[key.start_mark.line - 1].lstrip()
            if not (key.start_mark.column and above.startswith("#")):
                found += uncommented(value, lines)
            continue
        row, is_beside = key.start_mark.line, value.end_mark.line == key.start_mark.line
        column = value.end_mark.column if is_beside else key.end_mark.column + 1
        if not re.match(r"\s+# *\S+", lines[row][column:]):
            found.append(key.value)
    return found


def test_every_shipped_default_has_a_comment() -> None:
    text = REAL.read_text()
    document = yaml.compose(text)
    assert isinstance(document, yaml.MappingNode)
    assert uncommented(document, text.splitlines()) == []


def test_a_default_without_a_comment_is_noticed() -> None:
    text = "a:\n  b: 1  # one\n  c: '# no'\n  d: ''\n  e:  # two\n  - 1\n  f:\n    g: 1\n"
    document = yaml.compose(text)
    assert isinstance(document, yaml.MappingNode)
    assert uncommented(document, text.splitlines()) == ["c", "d", "g"]
