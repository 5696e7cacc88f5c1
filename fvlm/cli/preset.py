"""Apply a preset: `python -m fvlm.cli.preset NAME` sets its values in params.yaml.

A preset (presets/NAME.yaml) holds every key of `collect` to `evaluate` but `collect.source`: the
result does not depend on what was there before. The source, the other sections and all comments
stay, and every value that is replaced is printed.
"""

from collections.abc import Sequence
from pathlib import Path

from fvlm.cli.rules import Sections
from fvlm.core.device import auto_dtype
from fvlm.core.params import PARAMS, load_params, overlay_params
from fvlm.core.stage import command_line, run

PRESETS = Path("presets")


def main(arguments: Sequence[str] | None = None) -> None:
    """Apply the preset named on the command line."""
    parser = command_line(__doc__)
    parser.add_argument("name", choices=sorted(path.stem for path in PRESETS.glob("*.yaml")))
    name = parser.parse_args(arguments).name
    changes = overlay_params(Sections, PRESETS / f"{name}.yaml", auto_dtype=auto_dtype)
    source = load_params(Sections).collect.source
    print(*changes, f"{PARAMS} now holds preset {name}: {len(changes)} values changed", sep="\n")
    print(f"collect.source stays {source}: set it to your folder of videos, or to a list of them")


if __name__ == "__main__":
    run(main)
