"""The collect stage lists a folder, the same way every time, and fails with one message."""

import json
import os
import sys
from pathlib import Path

import pytest

from fvlm.cli.rules import Sections
from fvlm.core.errors import ParamsError, SourceError
from fvlm.core.io import read_jsonl
from fvlm.core.params import overlay_params
from pipeline import collect, paths

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(
        "collect:\n  source: videos\n  control_clips: 2\n  control_seed: 0\n"
    )
    (tmp_path / "videos").mkdir()
    return tmp_path


def test_lists_the_source(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.mp4", "a.mkv"):
        (project / "videos" / name).write_bytes(b"x" * 1000)
        os.utime(project / "videos" / name, ns=(1, 2))
    (project / "videos" / "b.txt").write_text("Seen.")
    collect.main()
    first = paths.VIDEOS.read_bytes()
    folder = project / "videos"
    assert read_jsonl(paths.VIDEOS) == [
        {
            "video_id": name,
            "path": str(folder / name),
            "size": 1000,
            "stamp": [1000, 2, status.st_ctime_ns, status.st_ino],
            "caption": caption,
            "start": None,
            "end": None,
            "group": name,
        }
        for name, caption in (("a.mkv", ""), ("b.mp4", "Seen."))
        for status in [(folder / name).stat()]
    ]
    assert "collect: 2 videos (0.0 MB), 1 with a caption, in videos" in capsys.readouterr().out
    collect.main()
    assert paths.VIDEOS.read_bytes() == first


def test_a_control_corpus_brings_its_questions(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = (project / "params.yaml").read_text().replace("videos", "question_control")
    (project / "params.yaml").write_text(params)
    collect.main()
    rows = read_jsonl(paths.ASKED)
    assert {row["video_id"] for row in rows} == {"clip-00000.mp4", "clip-00001.mp4"}
    assert all(row["answer"] in row["options"] for row in rows)
    assert f"collect: {len(rows)} questions" in capsys.readouterr().out


def test_an_empty_source_leaves_nothing(project: Path) -> None:
    with pytest.raises(SourceError, match=r"no videos in .*videos; collect\.source may be"):
        collect.main()
    assert not (project / "data").exists()


def test_faults_of_later_stages_are_found_first_and_all_together(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sound = (ROOT / "params.yaml").read_text()
    (project / "params.yaml").write_text(
        sound.replace("  batch_size: 8 ", "  batch_size: 64.5 ", 1) + "  seeed: 1\n"
    )
    with pytest.raises(ParamsError) as caught:
        collect.check_params()
    message = str(caught.value)
    assert "train.batch_size: expected int, got 64.5" in message
    assert "calibrate.seeed: unknown key; did you mean `seeds`?" in message


def test_sound_parameters_are_checked_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (project / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (project / "assets").symlink_to(ROOT / "assets")
    collect.check_params()
    assert capsys.readouterr().out == "params.yaml is valid\n"
    monkeypatch.setattr(sys, "executable", "/bin/false")  # a check that fails
    collect.check_params()
    with (project / "params.yaml").open("a") as file:
        file.write("# another comment\n")
    with pytest.raises(ParamsError):
        collect.check_params()


def test_more_frames_than_are_stored_are_refused_in_every_section(project: Path) -> None:
    (project / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (project / "more.yaml").write_text("train: {num_frames: 25}\nevaluate: {num_frames: 26}\n")
    with pytest.raises(ParamsError) as caught:
        overlay_params(Sections, project / "more.yaml")
    for section, got in (("train", 25), ("evaluate", 26)):
        expected = f"{section}.num_frames: must be <= 16 (decode.num_frames), got {got}"
        assert expected in str(caught.value)


def test_an_experiment_asks_the_questions_of_its_own_copy(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they were when it was queued, whatever the project's file says since."""
    (project / "videos/a.mp4").write_bytes(b"x")
    experiment = project / "experiment"
    experiment.mkdir()
    for folder, answer in ((project, "new"), (experiment, "queued")):
        line = {"video": "a.mp4", "question": "Which?", "answer": answer}
        (folder / "asked.jsonl").write_text(json.dumps(line))
    params = (project / "params.yaml").read_text() + "  questions: asked.jsonl\n"
    (experiment / "params.yaml").write_text(params)
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(experiment)
    collect.main()
    assert [row["answer"] for row in read_jsonl(paths.ASKED)] == ["queued"]
