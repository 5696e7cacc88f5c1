"""Typed parameters: the only module that opens `params.yaml`.

A section's model lives beside the component that it configures; a stage lists the sections it
reads as the fields of one `Params` model:

    class Sections(Params):
        encode: EncodeParams

    params = load_params(Sections).encode
"""

import difflib
import importlib.metadata
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fvlm.core.errors import FvlmError, ParamsError
from fvlm.core.io import (
    atomic_write,
    hash_json,
    read_json,
    sha256_file,
    state_folder,
    write_json,
)

PARAMS = Path("params.yaml")
CHECKED = "checked.json"  # in the state folder
REMEMBERED = 20  # parameters that passed
RENAMED = {  # keys of earlier versions, and what they are called now
    "decode.size": "frame_size",
    "encode.dino_blocks": "dino_layers",
    "train.accumulation_steps": "gradient_accumulation_steps",
    "train.clip_norm": "max_grad_norm",
    "train.recompute_encoder": "gradient_checkpointing",
}


class Params(BaseModel):
    """Frozen, strictly typed, unknown keys forbidden.

    rules: between sections, of a model whose fields are sections. A rule gives a line for each key
    that breaks it. It is not asked when a key that it reads is itself at fault.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    rules: ClassVar[Sequence[Callable[[Any], Iterator[str]]]] = ()


Rule = Callable[[Any], Iterator[str]]
P = TypeVar("P", bound=Params)


def load_params(sections: type[P], path: Path = PARAMS) -> P:
    """Read the sections that are the fields of `sections`; all faults are reported together.

    Raises ParamsError when the file cannot be read or any value is invalid.
    """
    return validate_params(sections, read_yaml(path), path)


def validate_params(
    sections: type[P], document: dict[str, Any], path: Path, *, rules: Sequence[Rule] = ()
) -> P:
    """Check the sections of a parsed document, their own rules and `rules`.

    `path` is named in the error.
    """
    chosen = {name: document[name] for name in sections.model_fields if name in document}
    faults: list[str] = []
    try:
        found = sections.model_validate(chosen)
    except ValidationError as error:
        faults += [_describe(fault, sections) for fault in error.errors()]
        found = _without_faults(sections, chosen, error)
    for rule in (*sections.rules, *rules):
        try:
            faults += rule(found)
        except AttributeError:
            if not faults:
                raise
    if faults:
        raise ParamsError(f"{path} is invalid:\n  " + "\n  ".join(faults))
    return found


def _without_faults(sections: type[P], document: dict[str, Any], error: ValidationError) -> P:
    """The sections without the keys that are at fault: to read one is an AttributeError."""
    wrong = {fault["loc"][:2] for fault in error.errors()}
    found = {}
    for name, values in document.items():
        annotation = sections.model_fields[name].annotation
        if isinstance(values, dict) and isinstance(annotation, type):
            kinds = annotation.model_fields
            sound = {
                key: TypeAdapter(kinds[key].annotation).validate_python(value)
                for key, value in values.items()
                if key in kinds and (name, key) not in wrong
            }
            found[name] = annotation.model_construct(**sound)
    return sections.model_construct(**found)


def hash_params(path: Path = PARAMS) -> str:
    """Hex sha256 of the file."""
    if not path.exists():
        raise ParamsError(f"{path} not found; run from the repository's root")
    return sha256_file(path)


def is_checked() -> bool:
    """Whether these parameters passed all checks, and nothing has changed since."""
    seen = _checked().get(hash_params())
    return seen is not None and seen == _look_at(seen)


def remember_check(read: Iterable[str], digest: str) -> None:
    """Note that params.yaml, with this digest, passed all checks with this code.

    read: the files, and the packages as `package:NAME`, that the checks looked at. Of parameters
    that passed before, the last ones are kept: an edit that is taken back is no new check.
    """
    earlier = {key: seen for key, seen in _checked().items() if key != digest}
    kept = dict(list(earlier.items())[1 - REMEMBERED :])
    write_json(state_folder() / CHECKED, {"checks": kept | {digest: _look_at(read)}})


def _checked() -> dict[str, dict[str, str]]:
    """What was looked at for parameters that passed, by their digest."""
    try:
        found: dict[str, dict[str, str]] = read_json(state_folder() / CHECKED).get("checks", {})
    except FvlmError:  # never checked, or the file is damaged
        return {}
    return found


def _look_at(names: Iterable[str]) -> dict[str, str]:
    """Hashes of files and versions of packages, "" for what is not there, and of all code here."""
    found = {}
    for name in {*names} - {"code"}:
        package = name.removeprefix("package:")
        try:
            found[name] = (
                importlib.metadata.version(package) if package != name else sha256_file(Path(name))
            )
        except (OSError, importlib.metadata.PackageNotFoundError):
            found[name] = ""
    code = sorted(Path(__file__).parents[1].rglob("*.py"))
    return found | {"code": hash_json([sha256_file(path) for path in code])}


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


def overlay_params(
    sections: type[P],
    overlay: Path,
    path: Path = PARAMS,
    *,
    auto_dtype: Callable[[], str] | None = None,
) -> list[str]:
    """Set the values of the file `overlay` in `path`; comments and all other values stay.

    Returns what has changed, as `section.key: old -> new`. Nothing is written unless the result is
    valid. Raises ParamsError, also for keys that `path`
    does not have.
    """
    yaml = YAML()
    yaml.width = 4096  # no line is ever wrapped
    document, before = yaml.load(path.read_text(encoding="utf-8")), read_yaml(path)
    changes = []
    for section, values in read_yaml(overlay).items():
        if not isinstance(values, dict):
            raise ParamsError(f"{overlay}: {section}: expected key: value pairs, got {values!r}")
        if section not in document:
            raise ParamsError(f"{overlay}: {section}: {path} has no such section")
        for key, value in values.items():
            old = before[section].get(key)
            if auto_dtype and (key, value) == ("dtype", "auto"):
                value = auto_dtype()  # what it means on this machine
            if type(old) is not type(value) or old != value:
                changes.append(f"{section}.{key}: {old} -> {value}")
                document[section][key] = value
    validate_params(sections, document, overlay)
    text = io.StringIO()
    yaml.dump(document, text)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
    return changes


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
