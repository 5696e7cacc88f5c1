"""Apply a preset: `python -m pipeline.preset NAME` sets its values in params.yaml.

A preset (presets/NAME.yaml) holds only what differs; comments and all other values stay.
Without a name it lists what there is.
"""

import sys
from pathlib import Path

from fvlm.errors import ParamsError
from fvlm.params import PARAMS, overlay_params
from pipeline.check import Sections
from pipeline.stage import run

PRESETS = Path("presets")


def main() -> None:
    """Apply the preset named on the command line."""
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if len(sys.argv) != 2 or sys.argv[1] not in names:
        asked = f"unknown preset {' '.join(sys.argv[1:])!r}; " if sys.argv[1:] else ""
        raise ParamsError(f"{asked}usage: python -m pipeline.preset {{{' | '.join(names)}}}")
    overlay_params(Sections, PRESETS / f"{sys.argv[1]}.yaml")
    print(f"{PARAMS} now holds preset {sys.argv[1]}; `git diff {PARAMS}` shows what changed")


if __name__ == "__main__":
    run(main)
