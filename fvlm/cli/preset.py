"""Apply a preset: `fvlm preset NAME` sets its values in params.yaml.

A preset (presets/NAME.yaml) holds every key of `collect` to `evaluate` but `collect.source`, or
every key of `uncertainty`: the result does not depend on what was there before. The source, the
other sections and all comments stay, and every value that is replaced is printed.
"""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from fvlm.cli.rules import Sections
from fvlm.core.device import auto_dtype
from fvlm.core.params import PARAMS, load_params, overlay_params, read_yaml
from fvlm.core.stage import new_parser

PRESETS = Path("presets")


def command_line() -> ArgumentParser:
    """What the command is given."""
    parser = new_parser(__doc__, "fvlm preset")
    parser.add_argument("name", choices=sorted(path.stem for path in PRESETS.glob("*.yaml")))
    return parser


def main(arguments: Sequence[str]) -> None:
    """Apply the preset named on the command line."""
    name = command_line().parse_args(arguments).name
    changes = overlay_params(Sections, PRESETS / f"{name}.yaml", auto_dtype=auto_dtype)
    print(*changes, f"{PARAMS} now holds preset {name}: {len(changes)} values changed", sep="\n")
    if "collect" in read_yaml(PRESETS / f"{name}.yaml"):
        source = load_params(Sections).collect.source
        print(f"collect.source stays {source}: set it to your videos' folder, or to a list of them")
