"""The instruct stage on real shards with tiny models from nothing: one run, and in parts."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fvlm.clips.tokenizer import AnswerTokenizer
from fvlm.core.errors import FvlmError, ParamsError, ShardError
from fvlm.core.io import read_json
from fvlm.core.params import load_params
from fvlm.model.saved import load_model
from pipeline import instruct, paths, train
from tests.pipeline.conftest import CLIPS, asked, write_questions
from tests.tiny import set_params

RESULTS = {
    "instruct": (paths.INSTRUCTED, paths.INSTRUCT_CURVES),
    "prefer": (paths.PREFERRED, paths.PREFER_CURVES),
}


def results_of(stage: str) -> list[Path]:
    folder, curve = RESULTS[stage]
    return [folder / "model.safetensors", folder / "config.json", curve]


def assert_parts_equal_one_run(stage: str, main: Callable[[], None]) -> None:
    """Train in one run; then again, stopped after each of the first two steps."""
    results = results_of(stage)
    main()
    whole = [path.read_bytes() for path in results]
    for folder in (Path(f".state/{stage}"), results[0].parent):
        shutil.rmtree(folder)
    set_params(Path(), {"train": {"max_hours": 1e-9}})
    for _ in range(2):
        with pytest.raises(SystemExit, match="75"):
            main()
    assert not results[0].exists()
    set_params(Path(), {"train": {"max_hours": 1.0}})
    main()
    assert [path.read_bytes() for path in results] == whole


def handed_back(stage: str) -> str:
    return f"{stage}: handed back: trained before with the same code, data and parameters"


def test_a_model_that_answers_is_trained_once_and_follows_its_questions(
    answering: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Those about training clips, every word of them; held-out ones are only looked at."""
    set_params(answering, {"instruct": {"max_samples": 96}})
    instruct.main()
    assert "instruct: 24/24 steps" in capfd.readouterr().err
    model, figures = load_model(paths.INSTRUCTED), read_json(paths.INSTRUCT_METRICS)
    assert isinstance(model.tokenizer, AnswerTokenizer)
    assert (model.text, model.tokenizer.chat.place) == ("answer", "before")
    assert (figures["questions"], figures["questions_too_long"]) == (2 * CLIPS + 1, 1)
    assert (figures["steps"], figures["samples"]) == (24, 96)
    rows = list(csv.DictReader(paths.INSTRUCT_CURVES.read_text().splitlines()))
    for name in ("loss_caption_coarse", "loss_caption_fine"):
        assert 0 < figures[name] < float(rows[0][name])  # less than at the start
    held_out = list(csv.DictReader(paths.INSTRUCT_VALIDATION.read_text().splitlines()))
    assert [row["samples"] for row in held_out] == ["16", "36", "56", "76", "96"]
    results = results_of("instruct")
    first = [path.read_bytes() for path in results]

    lines = asked()
    others = {
        "nothing": lines,
        "a held-out question": [*lines[:-2], lines[-2] | {"answer": "slow"}, lines[-1]],
        # In words that are known: the tokenizer stays.
        "a training question": [*lines[:3], lines[3] | {"answer": "blue"}, *lines[4:]],
    }
    for what, changed in others.items():
        write_questions(changed)
        instruct.main()
        said, progress = capfd.readouterr()
        same = what != "a training question"
        assert (handed_back("instruct") in said) == same, what
        assert ("instruct: 24/24 steps" in progress) != same, what
        found = [path.read_bytes() for path in results]
        assert (found == first) == same, what


def test_parts_equal_one_run(answering: Path) -> None:
    assert_parts_equal_one_run("instruct", instruct.main)
    assert not list(answering.glob(".state/instruct/*/step-*"))


def test_beside_it_models_asked_behind_the_video_and_with_pooled_tokens(
    answering: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The model itself is not trained again for them."""
    instruct.main()
    set_params(answering, {"instruct": {"question_after": True, "pooled_tokens": [4]}})
    instruct.main()
    said, progress = capfd.readouterr()
    assert said.splitlines() == [handed_back("instruct")]
    for name in ("question-after", "pooled 4"):
        assert f"instruct {name}: 3/3 steps" in progress
    folders = [paths.INSTRUCTED, paths.INSTRUCTED_AFTER, paths.INSTRUCTED_POOLED / "4"]
    assert sorted(path.parent for path in paths.INSTRUCTED.rglob("config.json")) == sorted(folders)
    models = [load_model(folder) for folder in folders]
    tokenizers = [model.tokenizer for model in models]
    places = [one.chat.place for one in tokenizers if isinstance(one, AnswerTokenizer)]
    assert places == ["before", "after", "before"]
    assert [model.attention.tokens_per_frame for model in models] == [1, 1, 4]
    assert [model.fine_iterations for model in models] == [1, 1, 0]


def test_each_model_starts_from_its_counterpart(answering: Path) -> None:
    """With queries of its own for each seed where that was trained, else from that of the first."""
    for name in ("", "seed-2", "pooled/4"):
        (paths.MODEL / name).mkdir(parents=True)
    values = {"seeds": [0, 2, 3], "question_after": True, "pooled_tokens": [4]}
    values |= {"start": "models/foveated"}
    set_params(answering, {"instruct": values})

    def starts() -> dict[str, str]:
        trainings = instruct.list_trainings(load_params(instruct.Sections))
        return {
            str(training.folder.relative_to(paths.INSTRUCTED)): training.params.start
            for training in trainings
        }

    own, other = "models/foveated", "models/foveated/seed-2"
    assert starts() == {
        ".": own,
        "seed-2": other,
        "seed-3": own,
        "question-after": own,
        "question-after/seed-2": other,
        "question-after/seed-3": own,
        **{f"pooled/4{seed}": f"{own}/pooled/4" for seed in ("", "/seed-2", "/seed-3")},
    }
    set_params(answering, {"instruct": {"start": "weights/mine"}})
    assert set(starts().values()) == {"weights/mine"}
    set_params(answering, {"instruct": {"start": "models/foveated", "pooled_tokens": [1]}})
    with pytest.raises(ParamsError, match=r"pooled_tokens: 1 starts from models/foveated/pooled/1"):
        starts()


def test_it_goes_on_from_the_model_that_train_left(answering: Path) -> None:
    """A rate of almost nothing leaves its weights; those of words are new."""
    train.main()
    few = {"lr": 1e-12, "max_samples": 4, "warmup_samples": 0}
    set_params(answering, {"instruct": few | {"start": "models/foveated"}})
    instruct.main()
    start, found = (load_model(folder).state_dict() for folder in (paths.MODEL, paths.INSTRUCTED))
    assert found.keys() - start.keys() == {"language.embed_tokens.weight"}
    for name, value in start.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-8, msg=name)
    set_params(answering, {"model": {"temperature": 0.7}})
    with pytest.raises(FvlmError, match=r"models/foveated is another model: model.temperature is"):
        instruct.main()


@pytest.mark.usefixtures("answering")
def test_without_a_question_that_fits_the_message_says_so() -> None:
    """Of held-out clips none has to: there is no curve of them then."""
    set_params(Path(), {"instruct": {"max_text_tokens": 2}})
    with pytest.raises(ShardError, match=r"no question about these 6 clips \(13 are too long\)"):
        instruct.main()
    lines = asked()
    write_questions(lines[2 * CLIPS : -1])  # of held-out clips alone
    with pytest.raises(ShardError, match=r"has no question about these 6 clips: give collect"):
        instruct.main()
    assert not paths.INSTRUCTED.exists()
    long = [line | {"question": "what " * 40} for line in lines[2 * CLIPS :]]
    write_questions([*lines[: 2 * CLIPS], *long])
    set_params(Path(), {"instruct": {"max_text_tokens": 16}})
    instruct.main()
    assert len(paths.INSTRUCT_VALIDATION.read_text().splitlines()) == 1
