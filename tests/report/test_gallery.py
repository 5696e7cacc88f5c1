import io
from pathlib import Path

from PIL import Image

from fvlm.report.gallery import attention_alt, choose_clips, describe_choice, prediction_alt
from fvlm.report.page import PicturedClip
from fvlm.report.view import ClipView


def rows(*ratios: str) -> list[dict[str, str]]:
    return [{"key": f"clip-{i}", "coarse_fine_ratio_dynamic": r} for i, r in enumerate(ratios)]


def test_best_and_worst_are_chosen_best_first() -> None:
    chosen = choose_clips(rows("1.0", "1.2", "0.8", "1.1", "0.9"), 1)
    assert [(c.key, c.place, c.ratio) for c in chosen] == [
        ("clip-1", "Best", 1.2),
        ("clip-2", "Worst", 0.8),
    ]
    assert describe_choice(chosen, 5) == "The best and the worst of 5 held-out clips."


def test_few_clips_are_all_shown_once() -> None:
    chosen = choose_clips(rows("1.0", "1.2", "0.8"), 2)
    assert [c.place for c in chosen] == ["Best", "2 of 3", "Worst"]
    assert describe_choice(chosen, 3) == "All 3 held-out clips."


def test_clips_without_a_ratio_are_left_out() -> None:
    assert [c.key for c in choose_clips(rows("", "1.0"), 3)] == ["clip-1"]


def test_pictures_are_files_and_parts_of_the_page(clip: PicturedClip, pictures: Path) -> None:
    names = ["clip-1-attention.png", "clip-1-predictions.png", "clip-1.mp4"]
    assert sorted(path.name for path in pictures.iterdir()) == names
    for name, inside in zip(names[:2], (clip.fixations, clip.predictions), strict=True):
        with Image.open(pictures / name) as file, Image.open(io.BytesIO(inside)) as copy:
            assert file.size == copy.size
    assert (pictures / names[2]).read_bytes() == clip.movie


def test_alternative_texts_say_what_the_pictures_show(view: ClipView) -> None:
    looking = attention_alt(view, "clip.mp4")
    assert "coarse pass: entropy 100% of the maximum, peak 1.0 times uniform" in looking
    assert "on the left in 3 frames, in the middle in 2 frames, on the right in 2" in looking
    predicted = prediction_alt(view, "clip.mp4")
    assert "coarse 0.2500, fine 0.1250, persistence 0.5000" in predicted
