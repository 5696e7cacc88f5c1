"""What a stage recorded of its parameters, held against params.yaml by the stages behind it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvlm.core.errors import ParamsError
from fvlm.core.params import PARAMS, read_yaml


def check_recorded(section: str, recorded: Mapping[str, Any], folder: Path, *, stage: str) -> None:
    """Raise ParamsError where params.yaml no longer says what `folder` was made with.

    recorded: values of keys of `section`; other keys are not compared.
    """
    values = read_yaml(PARAMS).get(section, {})
    different = [
        f"{section}.{key} is {values[key]!r} in {PARAMS}, and {folder} was made with {value!r}"
        for key, value in recorded.items()
        if key in values and values[key] != value
    ]
    if different:
        raise ParamsError("; ".join(different) + f": run `dvc repro {stage}`")
