"""Have a stage make its work anew: `fvlm forget STAGE`, then `dvc repro -f STAGE`.

DVC's `-f` runs a stage again, and the stage then hands back what it made before with the same code,
data and parameters. After this command it does not, until it has run once more.
"""

from argparse import ArgumentParser
from collections.abc import Sequence

from fvlm.core.kept import forget
from fvlm.core.stage import new_parser

# As DVC calls them: a stage of another file than dvc.yaml is named with it.
STAGES = {name: name for name in ("filter", "decode", "encode", "train")}
STAGES |= {name: f"answers/dvc.yaml:{name}" for name in ("instruct", "prefer")}
STAGES |= {"uncertainty": "uncertainty/dvc.yaml:uncertainty"}


def command_line() -> ArgumentParser:
    """What the command is given."""
    parser = new_parser(__doc__, "fvlm forget")
    parser.add_argument("stage", choices=list(STAGES))
    return parser


def main(arguments: Sequence[str]) -> None:
    """Mark what the stage has kept."""
    stage = command_line().parse_args(arguments).stage
    forget(stage)
    print(f"what {stage} made before is not handed back: run `dvc repro -f {STAGES[stage]}`")
