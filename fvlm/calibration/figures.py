"""The picture of a calibration: each trial's ratio with its interval, and its controls."""

from collections.abc import Sequence
from pathlib import Path

from fvlm.calibration.trials import Trial
from fvlm.evaluation.figures import BLUE, GREY, ORANGE, counted, picture
from fvlm.statistics.arms import CONTROLS, MEANINGS
from fvlm.statistics.summary import Row


def plot_calibration(figures: Row, trials: Sequence[Trial], path: Path) -> None:
    """Coarse loss / that of the fine pass (with interval) and of its controls, for each trial."""
    with picture(path) as axes:
        axes.axvline(1, color=GREY, lw=1, ls="--")
        for height, trial in enumerate(reversed(trials)):
            ratio, low, high = (
                figures[f"{trial.name}_ratio{end}"] for end in ("", "_low", "_high")
            )
            axes.plot([low, high], [height, height], color=BLUE, lw=4, alpha=0.5)
            for arm, marker in zip(CONTROLS, "s^v", strict=True):
                label = MEANINGS[arm].removeprefix("fine pass with ")
                value = figures[f"{trial.name}_{arm}"]
                axes.plot(value, height, marker, color=ORANGE, mfc="none", label=label)
            # Above the controls: where nothing helps, all lie on one spot.
            axes.plot(ratio, height, "o", color=BLUE, label="predicted queries", zorder=3)
            axes.annotate(
                f"{ratio:.3f}", (ratio, height), (0, 9), textcoords="offset points", ha="center"
            )
        axes.set_yticks(range(len(trials)), [_trial_label(figures, t) for t in reversed(trials)])
        axes.set_ylim(-0.5, len(trials) - 0.3)
        axes.set_xlabel("coarse loss / loss of a fine pass with these queries, frames 3 and later")
        axes.set_title(
            f"Calibration, {figures[f'{trials[0].name}_videos']} held-out videos: above 1, these "
            "queries help"
        )
        by_label = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(by_label.values(), by_label, frameon=False, fontsize=9, loc="best")


def _trial_label(figures: Row, trial: Trial) -> str:
    seeds = figures[f"{trial.name}_seeds"]
    look = f"deep, k = {trial.query_layers}" if trial.query_layers else "shallow"
    corpus = trial.corpus.replace("_", " ")
    return f"{corpus}\n{look}, {counted(seeds, 'seed')}"
