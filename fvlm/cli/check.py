"""Check all of params.yaml, every section and the rules between them: python -m fvlm.cli.check."""

from typing import TypeVar

from pydantic import ValidationInfo, field_validator

from fvlm.calibration.trials import CalibrateParams
from fvlm.core.params import PARAMS, Params, load_params
from fvlm.core.stage import run
from fvlm.corpus.listing import CollectParams
from fvlm.encoders.frames import EncodeParams
from fvlm.evaluation.losses import EvaluateParams
from fvlm.model.foveated import ModelParams
from fvlm.report.gallery import ReportParams
from fvlm.training.optim import TrainParams
from fvlm.uncertainty.sampling import UncertaintyParams
from fvlm.video.accept import FilterParams
from fvlm.video.decode import DecodeParams

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
    uncertainty: UncertaintyParams
    calibrate: CalibrateParams

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
    """Load everything; faults are reported together."""
    load_params(Sections)
    print(f"{PARAMS} is valid")


if __name__ == "__main__":
    run(main)
