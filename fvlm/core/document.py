"""Documents with nested values whose files are flat: a figure a line, as `dvc metrics` shows them.

A field's flat name is its own, or the template that its annotation gives, in which `{}` stands for
the name of what holds it: `Annotated[float, "loss_{}"]`. Values of a dictionary are held by their
keys; in its own template the last `{}` is the key. The figures of an optional document that is
None are left out.

    class Arm(Document):
        loss: Annotated[float, "loss_{}"]

    class Result(Document):
        arms: dict[str, Arm]

    flatten(Result(arms={"fine": Arm(loss=0.2)}))      # {"loss_fine": 0.2}
"""

import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from fvlm.core.errors import FvlmError
from fvlm.core.io import read_csv, read_json, write_columns, write_json

DIGITS = 4  # of a figure that git tracks
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class Document(BaseModel):
    """Frozen, unknown names forbidden, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


D = TypeVar("D", bound=Document)


def flatten(document: Document) -> dict[str, Any]:
    """The figures of a document by their flat names, in the order of its fields."""
    return dict(_flat(document, ""))


def read_flat(kind: type[D], figures: Mapping[str, Any], source: Path) -> D:
    """The document that `flatten` made figures of; `source` is the file they were read from.

    Raises FvlmError where figures are missing, too many or of another type.
    """
    try:
        document = kind.model_validate(_nested(kind, figures, ""))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise FvlmError(f"{source} was made by other code ({faults}); run `dvc repro`") from None
    if unknown := sorted(figures.keys() - flatten(document).keys()):
        raise FvlmError(
            f"{source} was made by other code (unknown: {', '.join(unknown)}); run `dvc repro`"
        )
    return document


def write_document(path: Path, document: Document) -> None:
    """Write a document as one flat JSON object, every figure in full."""
    write_json(path, flatten(document))


def read_document(kind: type[D], path: Path) -> D:
    """The document that `write_document` wrote."""
    return read_flat(kind, read_json(path), path)


def write_figures(path: Path, figures: Document | Mapping[str, Any]) -> None:
    """Write figures for people, git and `dvc metrics diff`: flat, with DIGITS significant digits.

    What decides by figures reads them in full elsewhere: rounded, an interval may touch a bound.
    """
    flat = flatten(figures) if isinstance(figures, Document) else figures
    write_json(path, {name: _rounded(value) for name, value in flat.items()})


def write_table(path: Path, rows: Iterable[Document]) -> None:
    """Write documents as the rows of a CSV file; None stays empty. At least one row.

    The first row decides the columns. Memory holds one row.
    """
    figures = map(flatten, rows)
    first = next(figures)
    write_columns(path, first, chain([first], figures))


def read_table(kind: type[D], path: Path) -> list[D]:
    """The rows that `write_table` wrote."""
    return [read_flat(kind, row, path) for row in read_csv(path)]


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _flat(document: Any, holder: str) -> Iterator[tuple[str, Any]]:
    for field, info in type(document).__pydantic_fields__.items():
        value, template = getattr(document, field), _template(field, info, holder)
        if isinstance(value, dict):
            named = [(template.replace("{}", str(key)), entry) for key, entry in value.items()]
        else:
            named = [(template, value)]
        inner = _inner(info.annotation)
        for name, entry in named:
            if inner is None:
                yield name, entry
            elif entry is not None:
                yield from _flat(entry, name)


def _nested(kind: type[Any], figures: Mapping[str, Any], holder: str) -> dict[str, Any]:
    """Values of the fields of `kind` that stand in the figures."""
    values: dict[str, Any] = {}
    for field, info in kind.__pydantic_fields__.items():
        template, inner = _template(field, info, holder), _inner(info.annotation)
        if typing.get_origin(info.annotation) is dict:
            digits = typing.get_args(info.annotation)[0] is int
            keys = _keys(template, inner, figures, r"\d+" if digits else ".+")
            names = {key: template.replace("{}", key) for key in keys}
            values[field] = {
                key: _nested(inner, figures, name) if inner else figures[name]
                for key, name in names.items()
            }
            continue
        if inner is None:
            if template in figures:
                values[field] = figures[template]
        elif found := _nested(inner, figures, template):
            values[field] = found
    return values


def _template(field: str, info: FieldInfo, holder: str) -> str:
    """The flat name of a field; of a dictionary the template with its key still open."""
    keyed = typing.get_origin(info.annotation) is dict
    named = next((text for text in info.metadata if isinstance(text, str)), None)
    template = named or ("{}" if keyed else field)
    return template.replace("{}", holder, template.count("{}") - keyed)


def _inner(annotation: Any) -> type[Any] | None:
    """The document in an annotation such as `Kind | None` or `dict[str, Kind]`, if any."""
    if hasattr(annotation, "__pydantic_fields__"):
        return typing.cast(type[Any], annotation)
    return next(filter(None, map(_inner, typing.get_args(annotation))), None)


def _keys(
    template: str, inner: type[Any] | None, figures: Mapping[str, Any], key: str
) -> list[str]:
    """Keys of a dictionary, read off the names of its entries' first figures."""
    if inner is not None:
        field, info = next(iter(inner.__pydantic_fields__.items()))
        template = _template(field, info, template)
    pattern = re.compile(re.escape(template).replace(r"\{\}", f"({key})"))
    return [match[1] for name in figures if (match := pattern.fullmatch(name))]
