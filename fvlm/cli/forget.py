"""Have a stage make its work anew: `python -m fvlm.cli.forget STAGE`, then `dvc repro -f STAGE`.

DVC's `-f` runs a stage again, and the stage then hands back what it made before with the same code,
data and parameters. After this command it does not, until it has run once more.
"""

from collections.abc import Sequence

from fvlm.core.kept import forget
from fvlm.core.stage import command_line, run

STAGES = ("filter", "decode", "encode", "train")


def main(arguments: Sequence[str] | None = None) -> None:
    """Mark what the stage has kept."""
    parser = command_line(__doc__)
    parser.add_argument("stage", choices=STAGES)
    stage = parser.parse_args(arguments).stage
    forget(stage)
    print(f"what {stage} made before is not handed back: run `dvc repro -f {stage}`")


if __name__ == "__main__":
    run(main)
