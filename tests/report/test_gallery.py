import io
from pathlib import Path

from PIL import Image

from fvlm.report.choice import choose_clips, describe_choice
from fvlm.report.gallery import describe_attention, describe_errors, describe_fixations
from fvlm.report.page import PicturedClip
from fvlm.report.view import ClipView
from fvlm.statistics.evaluation import ClipRow


def rows(*ratios: float | None) -> list[ClipRow]:
    return [
        ClipRow(
            video_id="a.mp4",
            key=f"clip-{number}",
            losses={},
            coarse_fine_ratio=None,
            coarse_fine_ratio_dynamic=ratio,
        )
        for number, ratio in enumerate(ratios)
    ]


def test_best_and_worst_are_chosen_best_first() -> None:
    chosen = choose_clips(rows(1.0, 1.2, 0.8, 1.1, 0.9), 1)
    assert [(c.key, c.place, c.ratio) for c in chosen] == [
        ("clip-1", "Best of 5", 1.2),
        ("clip-2", "Worst of 5", 0.8),
    ]
    assert describe_choice(chosen, 5) == "The best and the worst of 5 held-out clips."


def test_few_clips_are_all_shown_once() -> None:
    chosen = choose_clips(rows(1.0, 1.2, 0.8), 2)
    assert [c.place for c in chosen] == ["Best of 3", "2 of 3", "Worst of 3"]
    assert describe_choice(chosen, 3) == "All 3 held-out clips."


def test_the_best_may_still_be_worse_and_the_worst_better() -> None:
    assert [c.place for c in choose_clips(rows(0.99, 0.9, 0.8), 1)] == [
        "Best of 3, still worse",
        "Worst of 3",
    ]
    assert [c.place for c in choose_clips(rows(1.3, 1.2, 1.1), 1)] == [
        "Best of 3",
        "Worst of 3, still better",
    ]
    assert choose_clips(rows(0.99995, 0.9), 1)[0].place == "Best of 2"


def test_clips_without_a_ratio_are_left_out() -> None:
    assert [c.key for c in choose_clips(rows(None, 1.0), 3)] == ["clip-1"]


def test_pictures_are_files_and_parts_of_the_page(clip: PicturedClip, pictures: Path) -> None:
    names = ["clip-1-attention.png", "clip-1-predictions.png", "clip-1.mp4"]
    assert sorted(path.name for path in pictures.iterdir()) == names
    for name, inside in zip(names[:2], (clip.fixations, clip.predictions), strict=True):
        with Image.open(pictures / name) as file, Image.open(io.BytesIO(inside)) as copy:
            assert file.size == copy.size
    assert (pictures / names[2]).read_bytes() == clip.movie


def test_alternative_texts_say_what_the_pictures_show(view: ClipView) -> None:
    looking = describe_attention(view)
    assert "Coarse pass: entropy 100% of the maximum, peak 1.0 times uniform, CLS 25%" in looking
    left = "on the left in 3 frames, in the middle in 2 frames, on the right in 2 frames"
    assert f"fine pass {left}" in describe_fixations(view)
    predicted = describe_errors(view)
    assert "coarse 0.2850, fine 0.1600, persistence 0.5350" in predicted
