"""Questions of a published data set as this project has them: `fvlm questions FORMAT FILE`.

Reads   FILE: rows of the data set, as a JSON array (.json) or a line each (.jsonl)
Writes  JSON lines to stdout, for `collect.questions`

    fvlm questions mvbench action_sequence.json > questions.jsonl
    dvc exp run -S collect.questions=questions.jsonl answers/dvc.yaml

A question names its video by the id that the video has in `collect.source`.
"""

import json
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path

from fvlm.core.errors import SourceError
from fvlm.core.io import read_json
from fvlm.core.stage import given_path, new_parser
from fvlm.corpus.converters import CONVERTERS
from fvlm.corpus.questions import MAX_FAULTS
from fvlm.corpus.tables import Numbered, read_table


def command_line() -> ArgumentParser:
    """What the command is given."""
    parser = new_parser(__doc__, "fvlm questions")
    parser.add_argument("format", metavar="FORMAT", choices=list(CONVERTERS), help="%(choices)s")
    parser.add_argument("file", metavar="FILE", type=given_path)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Print all questions; of faulty rows none, but all faults."""
    chosen = command_line().parse_args(arguments)
    convert, lines, faults = CONVERTERS[chosen.format], list[str](), list[str]()
    for place, row in rows_of(chosen.file):
        try:
            lines += map(json.dumps, convert(row))
        except SourceError as error:
            faults.append(f"{chosen.file}:{place}: {error}")
    if faults:
        head = f"{len(faults)} rows are not of the form {chosen.format}, such as:"
        raise SourceError("\n  ".join([head, *faults[:MAX_FAULTS]]))
    print("\n".join(lines))


def rows_of(path: Path) -> Iterator[Numbered]:
    """Rows with their lines, of an array their places from 1 on; SourceError for another file."""
    if path.suffix not in (".json", ".jsonl") or not path.is_file():
        raise SourceError(
            f"{path} is no file of JSON (.json: an array of rows; .jsonl: a row each)"
        )
    if path.suffix == ".jsonl":
        yield from read_table(path).rows()
        return
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SourceError(f"{path} must be an array of rows")
    yield from enumerate(rows, start=1)
