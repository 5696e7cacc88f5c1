"""A control corpus is rendered once, whole or not at all, and is accepted by the other stages."""

import os
from pathlib import Path

import pytest

from fvlm.corpus import built, rendered
from fvlm.corpus.controls import RENDERED, RenderedCorpus
from fvlm.corpus.listing import CollectParams, list_videos
from fvlm.corpus.questions import list_questions
from fvlm.corpus.rendered import clip_name, rendered_folder
from fvlm.corpus.rendered_questions import ask


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FVLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def demo(monkeypatch: pytest.MonkeyPatch, footage_film: list[Path]) -> None:
    """Another film stands for the demo's, which would be fetched."""
    monkeypatch.setattr(rendered, "demo_folder", lambda: footage_film[0].parent)
    monkeypatch.setattr(rendered, "clip_names", lambda: [path.name for path in footage_film])


def test_rendered_once_and_alike() -> None:
    folder = rendered_folder("positive_control", clips=3, seed=0)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    times = {path.name: path.stat().st_ctime_ns for path in folder.iterdir()}
    assert rendered_folder("positive_control", clips=3, seed=0) == folder
    assert times == {path.name: path.stat().st_ctime_ns for path in folder.iterdir()}
    (folder / clip_name(1)).unlink()
    assert rendered_folder("positive_control", clips=3, seed=0) == folder
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no leftovers


def test_a_larger_corpus_begins_with_the_smaller_one() -> None:
    small = rendered_folder("noise_control", clips=2, seed=0)
    large = rendered_folder("noise_control", clips=3, seed=0)
    assert small != large
    for number in range(2):
        assert (small / clip_name(number)).read_bytes() == (large / clip_name(number)).read_bytes()


def test_another_film_makes_another_corpus_on_film(monkeypatch: pytest.MonkeyPatch) -> None:
    def names() -> list[str]:
        corpora: list[RenderedCorpus] = ["question_control", "question_on_film"]
        return [rendered_folder(corpus, clips=2, seed=0).name for corpus in corpora]

    control, on_film = names()
    monkeypatch.setattr(rendered, "film_version", lambda: "another")
    assert names()[0] == control
    assert names()[1] != on_film


@pytest.mark.parametrize("corpus", RENDERED)
def test_listed_with_captions_and_questions(corpus: RenderedCorpus) -> None:
    params = CollectParams(source=corpus, control_clips=2, control_seed=4)
    videos, left_out = list_videos(params)
    assert not left_out  # what marks the corpus as whole is no file of the user's
    assert [video.video_id for video in videos] == [clip_name(0), clip_name(1)]
    assert all(video.caption.endswith(".") for video in videos)
    assert {video.stamp[1] for video in videos} == {built.CLIP_TIME_NS}
    asked = [(clip_name(n), row["question"]) for n in (0, 1) for row in ask(corpus, n, seed=4)]
    rows = list_questions(videos, None)
    assert [(row["video_id"], row["question"]) for row in rows] == asked


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_damaged_questions_are_written_anew(damage: str) -> None:
    folder = rendered_folder("question_control", clips=2, seed=0)
    beside = folder / "clip-00001.questions.jsonl"
    text = beside.read_text()
    beside.unlink() if damage == "missing" else beside.write_text(text.replace("dark", "pale"))
    assert rendered_folder("question_control", clips=2, seed=0) == folder
    assert beside.read_text() == text


def test_a_failed_rendering_leaves_nothing(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "a.mp4").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built.build_once(cache / "x", ["a.mp4"], fail)
    assert os.listdir(cache) == []  # noqa: PTH208
