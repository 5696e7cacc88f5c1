"""What a stage recorded of its parameters, held against params.yaml by the stages behind it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvlm.core.errors import ParamsError
from fvlm.core.params import PARAMS, read_yaml


def check_recorded(
    keys: Sequence[str], recorded: Mapping[str, Any], folder: Path, *, stage: str
) -> None:
    """Raise ParamsError where params.yaml no longer says what `folder` was made with.

    keys: `section.key`, or `section` for all that is recorded. recorded: values by key; a key that
    is missing on either side is not compared.
    """
    document, different = read_yaml(PARAMS), []
    for key in keys:
        section, _, name = key.partition(".")
        for field in [name] if name else list(recorded):
            value = document.get(section, {}).get(field, recorded.get(field))
            if field in recorded and value != recorded[field]:
                different.append(
                    f"{section}.{field} is {value!r} in {PARAMS}, and {folder} was made with "
                    f"{recorded[field]!r}"
                )
    if different:
        raise ParamsError("; ".join(different) + f": run `dvc repro -f -s {stage}`")
