"""The picture of a calibration: each trial's ratio with its interval, and its controls."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fvlm.calibration.trials import Trial, TrialResult
from fvlm.evaluation.figures import BLUE, GREY, ORANGE, counted, picture
from fvlm.statistics.arms import CONTROLS
from fvlm.statistics.evaluation import short_meaning
from fvlm.statistics.quiz import MEANINGS, QuizResult


def plot_calibration(
    results: Mapping[str, TrialResult], trials: Sequence[Trial], path: Path
) -> None:
    """Coarse loss / that of the fine pass (with interval) and of its controls, for each trial."""
    with picture(path) as axes:
        axes.axvline(1, color=GREY, lw=1, ls="--")
        for height, trial in enumerate(reversed(trials)):
            found = results[trial.name]
            low, ratio, high = map(_place, (found.ratio.low, found.ratio.value, found.ratio.high))
            axes.plot([low, high], [height, height], color=BLUE, lw=4, alpha=0.5)
            for arm, marker in zip(CONTROLS, "s^v", strict=True):
                control = found.against[arm]
                left, value, right = map(_place, (control.low, control.value, control.high))
                axes.plot([left, right], [height, height], color=ORANGE, lw=1.5, alpha=0.5)
                label = short_meaning(arm)
                axes.plot(value, height, marker, color=ORANGE, mfc="none", label=label)
            # Above the controls: where nothing helps, all lie on one spot.
            axes.plot(ratio, height, "o", color=BLUE, label="predicted queries", zorder=3)
            said = f"{ratio:.3f} ({low:.3f} to {high:.3f})"
            axes.annotate(said, (ratio, height), (0, 9), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(trials)), [_label(results[t.name], t) for t in reversed(trials)])
        axes.set_ylim(-0.5, len(trials) - 0.3)
        axes.set_xlabel("coarse loss / loss of a fine pass with these queries, frames 3 and later")
        axes.set_title(
            f"Calibration, {results[trials[0].name].videos} held-out videos: above 1, these "
            "queries help"
        )
        by_label = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(by_label.values(), by_label, frameon=False, fontsize=9, loc="best")


def plot_answers(results: Mapping[str, QuizResult], path: Path) -> None:
    """Accuracy of both passes and of what must be no better, for each trial; with chance."""
    shown = {"fine": (BLUE, "o"), "coarse": (ORANGE, "o")}
    shown |= dict.fromkeys(("static_in_fine", "other_question", "blind"), (GREY, ""))
    marks = iter("s^v")
    with picture(path, height=2.8 + 0.7 * len(results)) as axes:
        for arm, (colour, round_mark) in shown.items():
            mark = round_mark or next(marks)
            for height, result in enumerate(reversed(list(results.values()))):
                found = result.arms[arm].accuracy
                low, value, high = (
                    100 * _place(end) for end in (found.low, found.value, found.high)
                )
                axes.plot([low, high], [height, height], color=colour, lw=4, alpha=0.4)
                axes.plot(value, height, mark, color=colour, mfc="none", label=MEANINGS[arm])
        for height, result in enumerate(reversed(list(results.values()))):
            chance = 100 * (result.chance or 0)
            axes.plot([chance] * 2, [height - 0.3, height + 0.3], color=GREY, lw=1, ls="--")
        names = [
            f"{name.replace('_', ' ')}\n{counted(result.seeds, 'seed')}"
            for name, result in results.items()
        ]
        axes.set_yticks(range(len(results)), names[::-1])
        axes.set_ylim(-0.5, len(results) - 0.3)
        axes.set_xlim(0, 104)
        axes.set_xlabel("right answers on held-out clips, % (95% interval; dashed: chance)")
        by_label = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.figure.legend(
            by_label.values(), by_label, frameon=False, fontsize=9, loc="outside lower center"
        )


def _place(value: float | None) -> float:
    """Where a figure is drawn: nowhere if it is undefined."""
    return math.nan if value is None else value


def _label(found: TrialResult, trial: Trial) -> str:
    look = f"deep, k = {trial.query_layers}" if trial.query_layers else "shallow"
    corpus = trial.corpus.replace("_", " ")
    return f"{corpus}\n{look}, {counted(found.seeds, 'seed')}"
