"""Apply a preset: `python -m fvlm.cli.preset NAME` sets its values in params.yaml.

A preset (presets/NAME.yaml) holds only what differs; comments and all other values stay.
"""

from collections.abc import Sequence
from pathlib import Path

from fvlm.cli.rules import Sections
from fvlm.core.params import PARAMS, overlay_params
from fvlm.core.stage import command_line, run

PRESETS = Path("presets")


def main(arguments: Sequence[str] | None = None) -> None:
    """Apply the preset named on the command line."""
    parser = command_line(__doc__)
    parser.add_argument("name", choices=sorted(path.stem for path in PRESETS.glob("*.yaml")))
    name = parser.parse_args(arguments).name
    overlay_params(Sections, PRESETS / f"{name}.yaml")
    print(f"{PARAMS} now holds preset {name}; `git diff {PARAMS}` shows what changed")


if __name__ == "__main__":
    run(main)
