"""The page of a quiz: accuracies, and questions with where the model looked to answer them.

Axes: T frames, S pixels of a stored frame, side patches along a frame.
"""

import base64
import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image

from fvlm.clips.batch import Batch
from fvlm.clips.tokenizer import AnswerTokenizer
from fvlm.core.io import atomic_write
from fvlm.core.seeding import unit_hash
from fvlm.evaluation.attention import over_patches
from fvlm.evaluation.figures import BLUE, GREY, ORANGE, svg_chart
from fvlm.evaluation.quiz import LoadRows, Quizzed
from fvlm.model.foveated import FoveatedModel
from fvlm.model.query_attention import patch_grid
from fvlm.report.pictures import (
    LEAST_SCALE,
    SHOWN,
    attention_cell,
    cell,
    grid,
    mark_fixation,
    printable,
)
from fvlm.statistics.quiz import MEANINGS, Answered, QuizResult, in_points

Frames = NDArray[np.uint8]
SHOWN_ARMS = ("coarse", "fine", "other_question")
PICTURED = 6  # questions
QUALITY = 85


@dataclass(frozen=True)
class PicturedQuestion:
    """A question, what the passes said, and a picture of where they looked."""

    video_id: str
    question: str
    options: Sequence[str]
    answer: str
    said: dict[str, str]
    picture: bytes
    alt: str


def choose_questions(quizzed: Quizzed, count: int = PICTURED) -> list[int]:
    """Questions by hash of their ids, whatever was answered: one a clip, as far as there are clips,
    and with another question about it.
    """
    others = quizzed.partners()["question"]
    rows = [row for row, other in enumerate(others) if other >= 0]
    rows.sort(key=lambda row: unit_hash(quizzed.questions[row]["id"], "pictured question"))
    by_clip = {quizzed.clips[row]: row for row in reversed(rows)}
    first = sorted(by_clip.values(), key=rows.index)
    return (first + [row for row in rows if row not in first])[:count]


@torch.inference_mode()
def picture_questions(
    model: FoveatedModel,
    tokenizer: AnswerTokenizer,
    quizzed: Quizzed,
    answered: Answered,
    load: LoadRows,
    read_frames: Callable[[int], Frames],
    *,
    folder: Path,
) -> list[PicturedQuestion]:
    """Chosen questions, each with a PNG file in `folder`.

    read_frames: the frames uint8 [T,3,S,S] of a clip that the model reads.
    """
    device, others = next(model.parameters()).device, quizzed.partners()["question"]
    pictured = []
    for place, row in enumerate(choose_questions(quizzed), start=1):
        question, other = quizzed.questions[row], quizzed.questions[others[row]]
        clip = quizzed.clips[row]
        batch = load([clip]).to(device)
        maps = _maps(model, tokenizer, batch, [question["question"], other["question"]])
        titles = (
            "coarse pass: the same query for every frame",
            f"fine pass, asked: {question['question']}",
            f"fine pass, asked: {other['question']}",
        )
        frames = np.ascontiguousarray(read_frames(clip).transpose(0, 2, 3, 1))
        sheet = look_sheet(frames, dict(zip(titles, maps, strict=True)), question["video_id"])
        with atomic_write(folder / f"question-{place}.png") as file:
            sheet.save(file, format="PNG")
        pictured.append(
            PicturedQuestion(
                video_id=question["video_id"],
                question=question["question"],
                options=question["options"],
                answer=question["answer"],
                said={arm: answered.said[arm][row] for arm in SHOWN_ARMS},
                picture=_webp(sheet),
                alt=f"Frames of {question['video_id']}: where each pass looked for this question, "
                f"and the fine pass for another: {other['question']}",
            )
        )
    return pictured


def look_sheet(frames: Frames, maps: dict[str, NDArray[np.float32]], title: str) -> Image.Image:
    """Frames [T,S,S,3], below them under named maps [T,side,side] of attention, ringed at most."""
    shown = [int(t) for t in np.linspace(0, len(frames) - 1, min(SHOWN, len(frames))).round()]
    scale = max(LEAST_SCALE, *(float(np.quantile(values, 0.995)) for values in maps.values()))
    rows = [[(f"frame {t + 1}", cell(frames[t])) for t in shown]]
    for name, values in maps.items():
        side = values.shape[-1]
        peaks = values.reshape(len(values), -1).argmax(1)
        cells = [
            mark_fixation(
                attention_cell(frames[t], values[t], scale),
                ((peaks[t] % side + 0.5) / side, (peaks[t] // side + 0.5) / side),
            )
            for t in shown
        ]
        names = [printable(name, 90), *[""] * (len(shown) - 1)]
        rows.append(list(zip(names, cells, strict=True)))
    return grid(printable(title), rows)


def _maps(
    model: FoveatedModel, tokenizer: AnswerTokenizer, batch: Batch, asked: Sequence[str]
) -> list[NDArray[np.float32]]:
    """Attention [T,side,side] in multiples of uniform: of the coarse pass, then of the fine pass
    for each question; deep or shallow.
    """
    B, T = batch.latents.shape[:2]
    found = []
    for number, question in enumerate(asked):
        captions = tokenizer([question], [None]).to(batch.latents.device, non_blocking=False)
        passes = model.run_passes(model.cache_clips(batch.inputs, captions), B, T)
        found += [passes[0], passes[-1]] if number == 0 else [passes[-1]]
    maps = []
    for output in found:
        shares = over_patches(output.attention[0])
        side = patch_grid(output.attention.shape[-1])[1]
        maps.append((shares * shares.shape[-1]).unflatten(-1, (side, side)).cpu().numpy())
    return maps


def draw_accuracies(axes: Axes, result: QuizResult) -> None:
    """The accuracy of every arm with its interval, and chance."""
    arms = list(result.arms)
    if result.chance is not None:
        axes.axvline(100 * result.chance, color=GREY, lw=1, ls="--", label="chance")
    for height, arm in enumerate(reversed(arms)):
        found, colour = result.arms[arm].accuracy, BLUE if arm == "fine" else ORANGE
        if found.value is None:
            axes.annotate("undefined", (0, height), color=GREY, va="center")
            continue
        if found.low is not None and found.high is not None:
            ends = [100 * found.low, 100 * found.high]
            axes.plot(ends, [height, height], color=colour, lw=4, alpha=0.45)
        axes.plot(100 * found.value, height, "o", color=colour)
        axes.annotate(
            f"{found.value:.1%}",
            (100 * found.value, height),
            (0, 7),
            textcoords="offset points",
            ha="center",
            size=9,
        )
    labels = [textwrap.fill(MEANINGS[arm].partition(":")[0], 30) for arm in arms]
    axes.set_yticks(range(len(arms)), labels[::-1], size=9)
    axes.set_ylim(-0.6, len(arms) - 0.3)
    axes.set_xlim(0, 104)
    axes.set_xlabel("right answers, % (95% interval)")


def draw_tokens(axes: Axes, result: QuizResult) -> None:
    """Accuracy against the visual tokens of a clip: the passes beside arms with pooled tokens."""
    pooled = [arm for arm in result.visual_tokens if arm.startswith("pooled_")]
    pooled.sort(key=result.visual_tokens.__getitem__)
    if result.chance is not None:
        axes.axhline(100 * result.chance, color=GREY, lw=1, ls="--")
    for arms, colour, label in (
        (pooled, GREY, "pooled tokens, no query"),
        (["coarse"], ORANGE, "coarse pass: one token a frame, the same query"),
        (["fine"], BLUE, "fine pass: one token a frame, where it chose to look"),
    ):
        x = [result.visual_tokens.get(arm, result.visual_tokens["fine"]) for arm in arms]
        found = [result.arms[arm].accuracy for arm in arms]
        y = [100 * (estimate.value or 0) for estimate in found]
        axes.plot(x, y, "o-", color=colour, label=label, ms=8)
        for place, estimate in zip(x, found, strict=True):
            if estimate.low is not None and estimate.high is not None:
                ends = [100 * estimate.low, 100 * estimate.high]
                axes.plot([place, place], ends, color=colour, lw=4, alpha=0.45)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("visual tokens of a clip")
    axes.set_ylabel("right answers, % (95% interval)")
    axes.set_ylim(0, 104)
    axes.legend(frameon=False, loc="lower right")


def accuracies_height(result: QuizResult) -> float:
    """Inches that let the labels of `draw_accuracies` stand apart."""
    return 0.8 + 0.55 * len(result.arms)


def render_answers(result: QuizResult, pictured: Sequence[PicturedQuestion]) -> str:
    """The page; nothing is loaded from anywhere."""
    environment = Environment(
        loader=PackageLoader("fvlm.report", "."), autoescape=True, undefined=StrictUndefined
    )
    charts = {
        "accuracies": svg_chart(
            lambda axes: draw_accuracies(axes, result), height=accuracies_height(result)
        ),
        "tokens": svg_chart(lambda axes: draw_tokens(axes, result)),
    }
    return environment.get_template("answers.html").render(
        result=result,
        rows=answer_rows(result),
        pictured=pictured,
        charts={name: _data("svg+xml", svg.encode()) for name, svg in charts.items()},
        pictures=[_data("webp", one.picture) for one in pictured],
        meanings=MEANINGS,
    )


def answer_rows(result: QuizResult) -> list[list[str]]:
    """The table of the arms: accuracy, what the fine pass is ahead by, and figures of bias."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    return [
        [
            MEANINGS[arm],
            percent(found.accuracy.value),
            in_points(result.fine_minus[arm]) if arm in result.fine_minus else "-",
            percent(found.balanced),
            percent(found.share),
            "-" if found.log_probability is None else f"{found.log_probability:.3f}",
        ]
        for arm, found in result.arms.items()
    ]


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=QUALITY)
    return buffer.getvalue()


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
