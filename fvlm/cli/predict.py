"""Run the trained model on one video: fvlm predict VIDEO writes where it looked.

Reads   VIDEO (decoded in a sandboxed process), the model's folder, the encoders it names
Writes  in the --out folder: fixations.mp4, attention.png, predictions.png, predictions.npz (latents
        actual, coarse, fine; pts_seconds), predictions.json (losses and fixations)
"""

import io
import math
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fvlm.clips.batch import Batch
from fvlm.clips.tokenizer import CaptionTokenizer
from fvlm.core.device import default_device
from fvlm.core.errors import FvlmError, VideoError, WeightsError
from fvlm.core.io import atomic_write, read_json, sha256_file, write_json
from fvlm.core.stage import given_path, new_parser
from fvlm.encoders.dino import load_dino
from fvlm.encoders.frames import EncodeParams, FrameEncoder
from fvlm.encoders.vae import load_vae
from fvlm.model.foveated import FoveatedModel
from fvlm.model.saved import CONFIG, load_model, load_tokenizer_of
from fvlm.report.movie import encode_movie, movie_frames
from fvlm.report.pictures import fixation_sheet, prediction_sheet, printable
from fvlm.report.view import ClipView, view_clip
from fvlm.video.decode import decode_request
from fvlm.video.reasons import Reason
from fvlm.video.worker import map_isolated
from pipeline.paths import MODEL

BATCH_FRAMES = 48  # frames in one forward of the encoders


def command_line() -> ArgumentParser:
    """What the command is given."""
    parser = new_parser(__doc__, "fvlm predict")
    parser.add_argument("video", type=given_path, help="a video file of at least --frames frames")
    parser.add_argument(
        "--out", type=given_path, help="folder for results; default: predictions/ and VIDEO's name"
    )
    parser.add_argument("--model", type=given_path, default=MODEL, help="default: %(default)s")
    parser.add_argument(
        "--frames", type=_frames, default=16, help="spread over the video; default: %(default)s"
    )
    parser.add_argument(
        "--caption", default="", help="what the video shows, for a model that was trained with text"
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Decode, encode, predict and picture one video."""
    chosen = command_line().parse_args(arguments)
    device = default_device()
    config = read_json(chosen.model / CONFIG)
    model = load_model(chosen.model).to(device)
    encoder = load_encoders(config, device)
    size = config["latent_shape"][1] * encoder.vae.down_factor
    frames, seconds = decode(chosen.video, num_frames=chosen.frames, size=size)
    tokenizer = load_tokenizer_of(chosen.model)
    batch = encode(model, encoder, frames, tokenizer=tokenizer, caption=chosen.caption).to(device)
    view = view_clip(model, encoder.vae, frames=frames, batch=batch, seconds=seconds)
    out = chosen.out or Path("predictions") / chosen.video.stem
    write(out, view, batch, title=printable(chosen.video.name))
    print(f"{out}: fixations.mp4, attention.png, predictions.png, predictions.npz, .json")


def _frames(text: str) -> int:
    count = int(text)
    if count < 3:
        raise ArgumentTypeError("must be at least 3: only then a predicted query can help")
    return count


def load_encoders(config: dict[str, Any], device: torch.device) -> FrameEncoder:
    """The encoders that the model was trained with; WeightsError when they are others by now."""
    found = config["provenance"]
    dino, dino_source = load_dino(found["dino"]["source"], blocks=found["dino"]["blocks"])
    vae, vae_source = load_vae(found["vae"]["source"])
    for name, source in (("dino", dino_source), ("vae", vae_source)):
        if source.sha256 != found[name]["sha256"]:
            raise WeightsError(
                f"the model was trained with other weights of {source.source} than those at hand: "
                f"sha256 {found[name]['sha256'][:12]} and {source.sha256[:12]}"
            )
    params = EncodeParams(
        dino=dino_source.source,
        vae=vae_source.source,
        dino_layers=found["dino"]["blocks"],
        layer=found["dino"]["layer"],
        batch_frames=BATCH_FRAMES,
        dtype="float32",
        compile=False,
    )
    return FrameEncoder(dino, vae, params, device)


def decode(video: Path, *, num_frames: int, size: int) -> tuple[NDArray[np.uint8], list[float]]:
    """Frames uint8 [T,3,S,S] spread over the video and their times in seconds.

    Raises FvlmError when the file cannot be used, with the reason.
    """
    if not video.is_file():
        raise FvlmError(f"{video} is not a file")
    request: dict[str, Any] = {"path": str(video), "sha256": sha256_file(video)}
    request |= {"num_frames": num_frames, "size": size}
    ((_, outcome),) = map_isolated(decode_request, [request], workers=1)
    if isinstance(outcome, VideoError):
        advice = "; choose fewer with --frames" if outcome.reason == Reason.TOO_FEW_FRAMES else ""
        raise FvlmError(f"{video} cannot be used: {outcome.reason}: {outcome}{advice}")
    return outcome.arrays["frames"], outcome.values["pts_seconds"]


def encode(
    model: FoveatedModel,
    encoder: FrameEncoder,
    frames: NDArray[np.uint8],
    *,
    tokenizer: CaptionTokenizer | None,
    caption: str,
) -> Batch:
    """The video as the model takes it: one clip, rounded to float16 as stored clips are."""
    tokens, latents = encoder.encode(frames[None])
    inputs = frames[None] if model.input == "frames" else tokens
    return Batch(
        torch.from_numpy(inputs),
        torch.from_numpy(latents),
        keys=["video"],
        captions=tokenizer([caption]) if tokenizer else None,
    )


def write(out: Path, view: ClipView, batch: Batch, *, title: str) -> None:
    """All results, each atomically."""
    with atomic_write(out / "fixations.mp4") as file:
        file.write(encode_movie(movie_frames(view, title)))
    for name, sheet in (
        ("attention", fixation_sheet(view, title)),
        ("predictions", prediction_sheet(view, title)),
    ):
        with atomic_write(out / f"{name}.png") as file:
            sheet.save(file, format="PNG")
    packed = io.BytesIO()
    np.savez(
        packed,
        actual=batch.latents[0].float().cpu().numpy(),
        coarse=view.latents["coarse"],
        fine=view.latents["fine"],
        pts_seconds=np.asarray(view.seconds),
    )
    with atomic_write(out / "predictions.npz") as file:
        file.write(packed.getvalue())
    write_json(
        out / "predictions.json",
        {
            "pts_seconds": view.seconds,
            "losses": {
                name: [None if math.isnan(loss) else loss for loss in values.tolist()]
                for name, values in view.losses.items()
            },
            "fixations": {name: found.fixations for name, found in view.passes.items()},
        },
    )
