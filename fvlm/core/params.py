"""Typed parameters: the only module that opens `params.yaml`.

A section's model lives beside the component that it configures; a stage lists the sections it
reads as the fields of one `Params` model:

    class Sections(Params):
        encode: EncodeParams

    params = load_params(Sections).encode
"""

import difflib
import io
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fvlm.core.errors import ParamsError
from fvlm.core.io import atomic_write, sha256_file

PARAMS = Path("params.yaml")
RENAMED = {  # keys of earlier versions, and what they are called now
    "decode.size": "frame_size",
    "encode.dino_blocks": "dino_layers",
    "train.accumulation_steps": "gradient_accumulation_steps",
    "train.clip_norm": "max_grad_norm",
    "train.recompute_encoder": "gradient_checkpointing",
}


class Params(BaseModel):
    """Frozen, strictly typed, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


P = TypeVar("P", bound=Params)


def load_params(sections: type[P], path: Path = PARAMS) -> P:
    """Read the sections that are the fields of `sections`; all faults are reported together.

    Raises ParamsError when the file cannot be read or any value is invalid.
    """
    return validate_params(sections, read_yaml(path), path)


def validate_params(sections: type[P], document: dict[str, Any], path: Path) -> P:
    """Check the sections of a parsed document; `path` is named in the error."""
    chosen = {name: document[name] for name in sections.model_fields if name in document}
    try:
        return sections.model_validate(chosen)
    except ValidationError as error:
        faults = [_describe(fault, sections) for fault in error.errors()]
        raise ParamsError(f"{path} is invalid:\n  " + "\n  ".join(faults)) from None


def hash_params(path: Path = PARAMS) -> str:
    """Hex sha256 of the file, to see whether any of it has changed."""
    if not path.exists():
        raise ParamsError(f"{path} not found; run from the repository's root")
    return sha256_file(path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse YAML as DVC does (YAML 1.2: `1e-4` is a number)."""
    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path} not found; run from the repository's root") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise ParamsError(f"{path}: expected sections of key: value, got {document!r}")
    return document


def overlay_params(sections: type[P], overlay: Path, path: Path = PARAMS) -> None:
    """Set the values of the file `overlay` in `path`; comments and all other values stay.

    Nothing is written unless the result is valid. Raises ParamsError, also for keys that `path`
    does not have.
    """
    yaml = YAML()
    yaml.width = 4096  # no line is ever wrapped
    document = yaml.load(path.read_text(encoding="utf-8"))
    for section, values in read_yaml(overlay).items():
        if not isinstance(values, dict):
            raise ParamsError(f"{overlay}: {section}: expected key: value pairs, got {values!r}")
        if section not in document:
            raise ParamsError(f"{overlay}: {section}: {path} has no such section")
        for key, value in values.items():
            document[section][key] = _resolve_dtype(value) if key == "dtype" else value
    validate_params(sections, document, overlay)
    text = io.StringIO()
    yaml.dump(document, text)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def _resolve_dtype(value: Any) -> Any:
    """`auto` as what it means on this machine."""
    if value != "auto":
        return value
    from fvlm.core.device import auto_dtype  # heavy, and only here needed

    return auto_dtype()


def _describe(fault: ErrorDetails, sections: type[Params]) -> str:
    """One line: dotted key, what was expected, what was got."""
    key, got = ".".join(map(str, fault["loc"])), fault["input"]
    match fault["type"]:
        case "extra_forbidden" if key in RENAMED:
            return f"{key}: this key is called `{RENAMED[key]}` now"
        case "extra_forbidden":
            valid = _siblings(sections, fault)
            hints = difflib.get_close_matches(str(fault["loc"][-1]), valid, n=1, cutoff=0.5)
            return f"{key}: unknown key" + "".join(f"; did you mean `{hint}`?" for hint in hints)
        case "missing":
            return f"{key}: missing"
        case "value_error":
            return f"{key}: {fault['ctx']['error']}"
        case kind if kind.endswith("_type"):
            return f"{key}: expected {_TYPES.get(kind, kind.removesuffix('_type'))}, got {got!r}"
    message = fault["msg"].removeprefix("Input should be ")
    return f"{key}: must be {message}, got {got!r}"


_TYPES = {
    "float_type": "number",
    "string_type": "text",
    "bool_type": "true or false",
    "model_type": "a section of key: value",
}


def _siblings(model: type[BaseModel], fault: ErrorDetails) -> list[str]:
    """The valid keys at the place where an unknown one stood."""
    for part in fault["loc"][:-1]:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
