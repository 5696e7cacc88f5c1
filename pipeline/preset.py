"""Apply a preset: `python -m pipeline.preset NAME` sets its values in params.yaml.

A preset (presets/NAME.yaml) holds only what differs; comments and all other values stay.
Without a name it lists what there is.
"""

import sys
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationInfo, field_validator

from fvlm.corpus.listing import CollectParams
from fvlm.errors import ParamsError
from fvlm.evaluation.controls import EvaluateParams
from fvlm.models.encoding import EncodeParams
from fvlm.models.foveated import ModelParams
from fvlm.params import PARAMS, Params, overlay_params
from fvlm.report.gallery import ReportParams
from fvlm.training.optim import TrainParams
from fvlm.video.accept import FilterParams
from fvlm.video.decode import DecodeParams
from pipeline.stage import run

PRESETS = Path("presets")
Chosen = TypeVar("Chosen", TrainParams, EvaluateParams)


class Sections(Params):
    """All of params.yaml."""

    collect: CollectParams
    filter: FilterParams
    decode: DecodeParams
    encode: EncodeParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams
    report: ReportParams

    @field_validator("train", "evaluate")
    @classmethod
    def _frames_are_stored(cls, value: Chosen, info: ValidationInfo) -> Chosen:
        decode = info.data.get("decode")  # absent when that section is itself at fault
        if decode is not None and value.num_frames > decode.num_frames:
            raise ValueError(
                f"num_frames must be <= decode.num_frames ({decode.num_frames}), "
                f"got {value.num_frames}"
            )
        return value


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
