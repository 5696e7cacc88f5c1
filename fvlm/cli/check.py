"""Check all of params.yaml, every section and the rules between them: fvlm check.

Then says what the stages will take: clips, disk space, hours at the rates of their last runs here,
downloads. For that the source is listed, which takes a stat a video.

Of the pretrained parts only small files are read (config.json), and only these are downloaded. What
is not at hand is named, and its rules are not checked.
"""

from argparse import ArgumentParser
from collections.abc import Sequence

from fvlm.cli.forecast import forecast
from fvlm.cli.parts import Parts
from fvlm.cli.rules import Sections, rules_of
from fvlm.core.params import PARAMS, hash_params, read_yaml, remember_check, validate_params
from fvlm.core.stage import new_parser


def command_line() -> ArgumentParser:
    """What the command is given."""
    parser = new_parser(__doc__, "fvlm check")
    parser.add_argument("--only-check", action="store_true", help="say nothing of what it takes")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Load everything; faults are reported together. `pipeline.collect` asks for this first.

    Raises ParamsError.
    """
    options = command_line().parse_args(arguments)
    digest, parts = hash_params(), Parts()
    params = validate_params(Sections, read_yaml(PARAMS), PARAMS, rules=rules_of(parts))
    for missing in parts.not_at_hand.values():
        print(f"{missing}; its rules are not checked")
    if not parts.not_at_hand:
        remember_check(parts.read, digest)
    print(f"{PARAMS} is valid")
    if not options.only_check:
        print(*forecast(params, parts), sep="\n")
