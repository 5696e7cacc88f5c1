"""The quiz stage on real shards and tiny saved models: every arm, the tables, the page."""

import csv
import json
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from fvlm.clips.tokenizer import Place, word_tokenizer
from fvlm.core.errors import FvlmError
from fvlm.core.io import read_csv, read_json, sample_key
from fvlm.core.rows import write_rows
from fvlm.core.seeding import generator
from fvlm.evaluation.quiz import ARMS
from fvlm.model.build import build_model
from fvlm.model.captions import Text
from fvlm.model.saved import read_config
from fvlm.shards.footage import hash_footage
from fvlm.shards.manifest import EncodedManifest, read_manifest
from fvlm.statistics.quiz import read_question_rows
from pipeline import paths, quiz
from tests import tiny
from tests.questions import question

STORED, TOKENS, LATENT, HELD_OUT = 4, (10, 16), (4, 4, 4), 8
SEEN, LONELY = 6, 7  # held-out clips: of trained footage, and with one question
OPTIONS = ["red", "blue", "a grey square"]
ASKED = ("which colour?", "what moves?")
Line = dict[str, Any]


def video(split: str, number: int) -> str:
    return f"{split}/{number}.mp4"


def write_shards() -> None:
    """Two training clips and held-out ones, of which one shows footage that was trained on."""
    rng = np.random.default_rng(0)
    encoded, frames = dict[str, Any](), dict[str, Any]()
    for split, count in (("train", 2), ("val", HELD_OUT)):
        sources = [
            ("train", 1) if (split, n) == ("val", SEEN) else (split, n) for n in range(count)
        ]
        films = [
            generator(0, *source).integers(0, 256, (STORED, 3, 32, 32), np.uint8)
            for source in sources
        ]
        keys = [sample_key(video(split, n)) for n in range(count)]
        facts = [
            {"video_id": video(split, n), "footage": hash_footage(film)}
            for n, film in enumerate(films)
        ]
        encoded[f"{split}-000000.tar"] = [
            (
                key,
                {
                    "tokens.npy": rng.standard_normal((STORED, *TOKENS)).astype(np.float16),
                    "latents.npy": rng.standard_normal((STORED, *LATENT)).astype(np.float16),
                    "json": told,
                },
            )
            for key, told in zip(keys, facts, strict=True)
        ]
        frames[f"{split}-000000.tar"] = [
            (key, {"frames.npy": film, "json": told})
            for key, film, told in zip(keys, films, facts, strict=True)
        ]
    manifest = tiny.encoded_manifest((STORED, *TOKENS), (STORED, *LATENT))
    tiny.write_shards(paths.ENCODED, encoded, manifest)
    tiny.write_shards(paths.FRAMES, frames, tiny.frame_manifest(STORED, 3, 32, 32))


def lines() -> list[Line]:
    """Two questions about each clip, but for one; the second of a held-out clip has a worse one."""
    return [
        question(
            sample_key(video(split, clip)),
            number,
            video_id=video(split, clip),
            group=f"{split} {clip}",
            question=ASKED[number],
            answer=OPTIONS[(clip + number) % 3],
            options=OPTIONS,
            kind=("colour", "motion")[number],
            rejected="nothing" if number else "",
            id=f"{video(split, clip)}#{number}",
        )
        for split, count in (("train", 2), ("val", HELD_OUT))
        for clip in range(count)
        for number in range(1 if (split, clip) == ("val", LONELY) else 2)
    ]


def save_model(
    folder: Path, *, seed: int = 0, place: Place = "before", pooled: int = 0, text: Text = "answer"
) -> None:
    """As `instruct` leaves it, with weights so large that every query matters."""
    words = word_tokenizer([*ASKED, *OPTIONS, "nothing"], place)
    torch.manual_seed(hash_of(folder))
    model, architecture = build_model(
        tiny.model_params("untrained:32x1", text=text, head_channels=8),
        read_manifest(paths.ENCODED, EncodedManifest),
        pooled_tokens=pooled,
        vocabulary=words.vocabulary if text == "answer" else 1,
    )
    for parameter in model.language.parameters():
        parameter.data.mul_(10)
    tokenizer = words if text == "answer" else None
    tiny.save_model(model, architecture, folder, seed=seed, tokenizer=tokenizer)


def hash_of(folder: Path) -> int:
    return int.from_bytes(str(folder).encode()[-6:], "big")


def write_project(questions: Sequence[Line]) -> None:
    section = {"batch_size": 4, "max_questions": 0, "bootstrap_samples": 100, "seed": 0}
    Path("params.yaml").write_text(json.dumps({"quiz": section}))
    write_shards()
    write_rows(paths.QUESTIONS, questions)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which two trainings, with all models beside them, were asked; not changed."""
    folder = tmp_path_factory.mktemp("quiz")
    with pytest.MonkeyPatch.context() as patched, chdir(folder):
        patched.setattr("fvlm.model.film_head.FILM_HIDDEN", 8)
        write_project(lines())
        for seed, inside in ((0, ""), (3, "seed-3")):
            save_model(paths.INSTRUCTED / inside, seed=seed)
            save_model(paths.INSTRUCTED_AFTER / inside, seed=seed, place="after")
            save_model(paths.INSTRUCTED_POOLED / "4" / inside, seed=seed, pooled=4)
            save_model(paths.PREFERRED / inside, seed=seed)
        quiz.main()
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without models; the working directory."""
    monkeypatch.setattr("fvlm.model.film_head.FILM_HIDDEN", 8)
    monkeypatch.chdir(tmp_path)
    write_project(lines())
    return tmp_path


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / paths.QUIZ_BY_QUESTION).open(newline="") as file:
        return list(csv.DictReader(file))


OTHERS = ("question_after", "question_after_coarse", "preferred", "preferred_coarse", "pooled_4")


def test_every_arm_has_its_figures(answered: Path) -> None:
    found = read_json(answered / paths.QUIZ_METRICS)
    for arm in (*ARMS, *OTHERS, "majority"):
        for name in (f"accuracy_{arm}", f"balanced_accuracy_{arm}"):
            assert isinstance(found[name], float), name
        assert (f"fine_minus_{arm}" in found) == (arm != "fine")
        assert found[f"accuracy_{arm}_low"] <= found[f"accuracy_{arm}"]
    for arm in (*ARMS, *OTHERS):
        assert found[f"log_probability_{arm}"] < 0
        assert 0 <= found[f"preference_accuracy_{arm}"] <= 1
    assert found["questions"] == found["multiple_choice"] == 2 * (HELD_OUT - 1) - 1
    assert found["videos"] == found["groups"] == HELD_OUT - 1
    assert found["seeds"] == 2
    assert read_config(answered / paths.INSTRUCTED).weights_sha256.startswith(found["weights"])
    assert len(found["weights"]) == 12
    assert found["chance"] == pytest.approx(1 / 3, abs=1e-3)
    assert found["statement"].startswith(found["verdict"].replace("_", " ").capitalize())
    assert {
        *("answer_coarse_fine_ratio", "question_after_coarse_fine_ratio", "pooled_4_gap_closed"),
        *("accuracy_fine_kind_colour", "fine_minus_coarse_kind_motion"),
    } <= set(found)
    assert found["question_after_coarse_fine_ratio"] != found["answer_coarse_fine_ratio"]
    assert (found["visual_tokens_fine"], found["visual_tokens_pooled_4"]) == (STORED, 4 * STORED)
    assert found["gflops_fine"] > 0
    assert found["gflops_pooled_4"] > 0


def test_every_question_has_a_row_and_none_of_trained_footage(answered: Path) -> None:
    rows = table(answered)
    wanted = [line for line in lines() if line["group"].startswith("val")]
    wanted = [line for line in wanted if line["video_id"] != video("val", SEEN)]
    assert sorted(row["id"] for row in rows) == sorted(line["id"] for line in wanted)
    by_id = {line["id"]: line for line in wanted}
    for row in rows:
        line = by_id[row["id"]]
        assert json.loads(row["options"]) == OPTIONS
        for name in ("key", "video_id", "group", "kind", "question", "answer"):
            assert row[name] == line[name]
        alone = row["video_id"] == video("val", LONELY)
        for arm in (*ARMS, *OTHERS):
            undefined = alone and arm == "other_question"
            assert (row[f"said_{arm}"] in OPTIONS) != undefined
            assert (row[f"loss_{arm}"] == "") == undefined
            assert (row[f"gained_{arm}"] == "") == (undefined or not line["rejected"])
    different = {arm: [row[f"loss_{arm}"] for row in rows] for arm in (*ARMS, *OTHERS)}
    assert len({tuple(values) for values in different.values()}) == len(different)


def test_the_table_is_of_the_first_training_and_the_figures_of_all(answered: Path) -> None:
    questions, run = read_question_rows(read_csv(answered / paths.QUIZ_BY_QUESTION))
    found = read_json(answered / paths.QUIZ_METRICS)
    said = [one["answer"] == word for one, word in zip(questions, run.said["fine"], strict=True)]
    assert run.right["fine"].tolist() == [float(right) for right in said]
    both = {arm: found[f"log_probability_{arm}"] for arm in ("coarse", "fine")}
    for arm, value in both.items():
        assert -run.loss[arm].mean() != pytest.approx(value, rel=1e-2)


def test_the_page_shows_questions_and_where_was_looked_for_each(answered: Path) -> None:
    page = (answered / paths.QUIZ_PAGE / "index.html").read_text()
    found = read_json(answered / paths.QUIZ_METRICS)
    assert found["statement"].split(":")[0] in page
    pictures = sorted((answered / paths.QUIZ_PAGE).glob("question-*.png"))
    assert [path.name for path in pictures] == [f"question-{n}.png" for n in range(1, 7)]
    assert page.count("<article>") == 6
    assert page.count("data:image/webp") == 6
    assert video("val", LONELY) not in page  # no other question to compare with
    assert 'src="http' not in page
    for path in (paths.QUIZ_PLOT, paths.QUIZ_TOKENS_PLOT, *pictures[:1]):
        assert imread(answered / path)[..., :3].std() > 0.05  # not blank


def test_one_training_alone_and_as_many_questions_as_wanted(project: Path) -> None:
    section = {"batch_size": 2, "max_questions": 5, "bootstrap_samples": 100, "seed": 0}
    (project / "params.yaml").write_text(json.dumps({"quiz": section}))
    save_model(paths.INSTRUCTED)
    quiz.main()
    found, rows = read_json(paths.QUIZ_METRICS), table(project)
    assert found["questions"] == len(rows) == 5
    assert not [name for name in found if "pooled" in name or "preferred" in name]
    assert "question_after_coarse_fine_ratio" not in found
    ids = {row["id"] for row in rows}
    assert len({name.split("#")[0] for name in ids}) >= 4  # spread over the clips


@pytest.mark.usefixtures("project")
def test_a_model_that_answers_nothing_is_refused_in_words() -> None:
    with pytest.raises(FvlmError, match=r"models/instructed: no such folder"):
        quiz.main()
    save_model(paths.INSTRUCTED, text="none")
    needed = r"models/instructed answers no questions: `dvc repro answers/dvc.yaml` does"
    with pytest.raises(FvlmError, match=needed):
        quiz.main()
    save_model(paths.INSTRUCTED)
    write_rows(paths.QUESTIONS, [line for line in lines() if line["group"] in ("val 6", "train 0")])
    with pytest.raises(FvlmError, match=r"no question about a held-out clip of footage of its own"):
        quiz.main()
    assert not paths.QUIZ_METRICS.exists()
