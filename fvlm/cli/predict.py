"""Run the trained model on one video: fvlm predict VIDEO writes where it looked.

With --ask it answers a question about the video, in both passes, and the film shows where it looked
for this question.

Reads   VIDEO (decoded in a sandboxed process), the model (a folder, or a repository of the model
        hub), the encoders it names
Writes  in the --out folder: fixations.mp4, attention.png, predictions.png, predictions.npz (latents
        actual, coarse, fine; pts_seconds), predictions.json (losses and fixations); with --ask only
        fixations.mp4, attention.png and answers.json
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

from fvlm.clips.batch import Batch, Captions
from fvlm.clips.tokenizer import AnswerTokenizer
from fvlm.core.device import default_device
from fvlm.core.errors import FvlmError, VideoError
from fvlm.core.io import atomic_write, sha256_file, write_json
from fvlm.core.stage import given_path, new_parser
from fvlm.encoders.frames import FrameEncoder
from fvlm.model.answers import Answer, answer_greedily, choose_option
from fvlm.model.foveated import FoveatedModel
from fvlm.model.saved import load_model
from fvlm.model.video import load_encoders
from fvlm.report.movie import encode_movie, movie_frames
from fvlm.report.pictures import fixation_sheet, prediction_sheet, printable
from fvlm.report.view import ClipView, view_clip
from fvlm.video.decode import decode_request
from fvlm.video.reasons import Reason
from fvlm.video.worker import map_isolated
from pipeline.paths import INSTRUCTED, MODEL

FEWEST = 3  # frames; only then a predicted query can help


def command_line() -> ArgumentParser:
    """What the command is given."""
    parser = new_parser(__doc__, "fvlm predict")
    parser.add_argument("video", type=given_path, help="a video file of at least --frames frames")
    parser.add_argument(
        "--out", type=given_path, help="folder for results; default: predictions/ and VIDEO's name"
    )
    parser.add_argument(
        "--model",
        type=_model,
        help=f"folder or hub id; default: {MODEL}, with --ask {INSTRUCTED}",
    )
    parser.add_argument(
        "--frames", type=_frames, help="spread over the video; default: as in the model's training"
    )
    for name, what in (("dino", "patch encoder"), ("vae", "autoencoder")):
        said = f"where the model's {what} lies, if elsewhere by now"
        parser.add_argument(f"--{name}", metavar="SOURCE", help=said)
    for name, default in (("start", "its beginning"), ("end", "its end")):
        said = f"second of the video at which to {name}; default: {default}"
        parser.add_argument(f"--{name}", metavar="SECONDS", type=_seconds, help=said)
    parser.add_argument(
        "--caption", default="", help="what the video shows, for a model that was trained with text"
    )
    parser.add_argument("--ask", metavar="QUESTION", type=_words, help="a question about the video")
    parser.add_argument(
        "--options", type=_options, help="with --ask: choose among these, separated by commas"
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Decode, encode, predict and picture one video."""
    parser = command_line()
    chosen = parser.parse_args(arguments)
    if chosen.options and not chosen.ask:
        parser.error("--options needs --ask")
    source = chosen.model or (INSTRUCTED if chosen.ask else MODEL)
    device = default_device()
    model = load_model(source).to(device)
    tokenizer = model.tokenizer
    if isinstance(tokenizer, AnswerTokenizer) is not bool(chosen.ask):
        raise FvlmError(
            f"{source} answers no questions: `dvc repro answers/dvc.yaml` trains {INSTRUCTED}, "
            "which does"
            if chosen.ask
            else f"{source} answers questions: give it one with --ask"
        )
    encoder = load_encoders(source, device, dino=chosen.dino, vae=chosen.vae)
    taken = model.config.preprocessing
    count = chosen.frames or max(FEWEST, taken.num_frames)
    span = (chosen.start or 0.0, chosen.end)
    frames, seconds = decode(chosen.video, span, num_frames=count, size=taken.frame_size)
    captions = None
    if isinstance(tokenizer, AnswerTokenizer):
        captions = tokenizer([chosen.ask], [None])
    elif tokenizer:
        captions = tokenizer([chosen.caption])
    batch = encode(model, encoder, frames, captions).to(device)
    view = view_clip(model, encoder.vae, frames=frames, batch=batch, seconds=seconds)
    out = chosen.out or Path("predictions") / chosen.video.stem
    if isinstance(tokenizer, AnswerTokenizer):
        answers = answer(model, tokenizer, batch, chosen.ask, chosen.options)
        for name, given in answers.items():
            print(f"{name} pass: {given.text} (probability {given.probability:.2f})")
        write_answers(out, view, answers, chosen.ask, title=printable(chosen.ask))
        print(f"{out}: fixations.mp4, attention.png, answers.json")
        return
    write(out, view, batch, title=printable(chosen.video.name))
    print(f"{out}: fixations.mp4, attention.png, predictions.png, predictions.npz, .json")


def _frames(text: str) -> int:
    count = int(text)
    if count < FEWEST:
        raise ArgumentTypeError(f"must be at least {FEWEST}: only then a predicted query can help")
    return count


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise ArgumentTypeError("must be 0 or more")
    return seconds


def _words(text: str) -> str:
    if not text.strip():
        raise ArgumentTypeError("a question has words")
    return text.strip()


def _options(text: str) -> list[str]:
    found = [option.strip() for option in text.split(",")]
    if len(found) < 2 or "" in found or len(set(found)) < len(found):
        raise ArgumentTypeError("must be two or more that differ, separated by commas")
    return found


def _model(text: str) -> str | Path:
    path = given_path(text)
    return path if path.is_dir() else text


def decode(
    video: Path, span: tuple[float, float | None], *, num_frames: int, size: int
) -> tuple[NDArray[np.uint8], list[float]]:
    """Frames uint8 [T,3,S,S] spread over a span of the video and their times in seconds.

    Raises FvlmError when the file cannot be used, with the reason.
    """
    if not video.is_file():
        raise FvlmError(f"{video} is not a file")
    start, end = span
    if end is not None and end <= start:
        raise FvlmError(f"--end ({end:g}) must be behind --start ({start:g})")
    request: dict[str, Any] = {"path": str(video), "sha256": sha256_file(video)}
    request |= {"num_frames": num_frames, "size": size, "clips": [span]}
    ((_, outcome),) = map_isolated(decode_request, [request], workers=1)
    if isinstance(outcome, VideoError):
        few = outcome.reason == Reason.TOO_FEW_FRAMES
        advice = "; choose fewer with --frames, or more of the video" if few else ""
        raise FvlmError(f"{video} cannot be used: {outcome.reason}: {outcome}{advice}")
    (clip,) = outcome.values["clips"]
    return outcome.arrays["frames"][0], clip["pts_seconds"]


def encode(
    model: FoveatedModel,
    encoder: FrameEncoder,
    frames: NDArray[np.uint8],
    captions: Captions | None,
) -> Batch:
    """The video as the model takes it: one clip, rounded to float16 as stored clips are."""
    tokens, latents = encoder.encode(frames[None])
    inputs = frames[None] if model.input == "frames" else tokens
    return Batch(
        torch.from_numpy(inputs),
        torch.from_numpy(latents),
        keys=["video"],
        captions=captions,
    )


def answer(
    model: FoveatedModel,
    tokenizer: AnswerTokenizer,
    batch: Batch,
    question: str,
    options: list[str] | None,
) -> dict[str, Answer]:
    """What the coarse and the last fine pass say, by name."""
    cache = model.cache_clips(batch.inputs, batch.captions)
    passes = model.run_passes(cache, *batch.latents.shape[:2])
    ends = {"coarse": passes[0], "fine": passes[-1]}
    if options:
        return {
            name: choose_option(model, tokenizer, cache, end, question, options)
            for name, end in ends.items()
        }
    return {
        name: answer_greedily(model, tokenizer, cache, end, question) for name, end in ends.items()
    }


def write_answers(
    out: Path, view: ClipView, answers: dict[str, Answer], question: str, *, title: str
) -> None:
    """The film, the sheet of the attention, and what was said, each atomically."""
    with atomic_write(out / "fixations.mp4") as file:
        file.write(encode_movie(movie_frames(view, title)))
    with atomic_write(out / "attention.png") as file:
        fixation_sheet(view, title).save(file, format="PNG")
    told = {name: vars(given) for name, given in answers.items()}
    fixations = {name: found.fixations for name, found in view.passes.items()}
    document = {"question": question, "answers": told, "fixations": fixations}
    write_json(out / "answers.json", document | {"pts_seconds": view.seconds})


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
