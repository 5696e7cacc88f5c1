"""One video through a trained model: tiny real encoders, a tiny saved model, real files."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest

from fvlm import __main__ as door
from fvlm.cli import predict
from fvlm.clips.tokenizer import word_tokenizer
from fvlm.core.errors import FvlmError, WeightsError
from fvlm.core.io import read_json, write_json
from fvlm.encoders.dino import load_dino
from fvlm.encoders.vae import load_vae
from fvlm.model.build import build_model
from fvlm.model.hub import CONFIG
from fvlm.model.saved import load_model
from fvlm.model.video import load_encoders
from fvlm.shards.manifest import EncodedManifest
from tests import tiny

SIZE, FRAMES = 32, 5
ASK, OPTIONS = "what moves over the noise?", "a square, a dog,nothing at all"


@pytest.fixture
def manifest(tiny_models: Path) -> EncodedManifest:
    """Of clips of the tiny encoders, of which one block is left for the queries."""
    (dino, dino_source), (vae, vae_source) = (
        load_dino(f"{tiny_models}/dino"),
        load_vae(f"{tiny_models}/vae"),
    )
    return tiny.encoded_manifest(
        (8, dino.num_tokens(SIZE), 16),
        (8, *vae.latent_shape(SIZE)),
        dino=asdict(dino_source) | {"blocks": dino.blocks, "layer": dino.blocks - 1},
        vae=asdict(vae_source),
    )


@pytest.fixture
def project(
    video_folder: Path,
    tiny_models: Path,
    manifest: EncodedManifest,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with encoders, a model for their tokens, and a video."""
    monkeypatch.chdir(video_folder)
    params = tiny.model_params(f"{tiny_models}/llm", query_layers=1, head_channels=8)
    model, architecture = build_model(params, manifest)
    tiny.save_model(model, architecture, video_folder / "models/foveated", frame_size=SIZE)
    return video_folder


@pytest.fixture
def asked(project: Path, manifest: EncodedManifest) -> Path:
    """The project, with a model that answers questions beside."""
    words = word_tokenizer([ASK, OPTIONS.replace(",", " ")], "before")
    params = tiny.model_params("untrained:32x1", text="answer", query_layers=1, head_channels=8)
    model, architecture = build_model(params, manifest, vocabulary=words.vocabulary)
    for parameter in model.language.parameters():
        parameter.data.mul_(10)  # so large that an answer is no coin
    folder = project / "models/instructed"
    tiny.save_model(model, architecture, folder, frame_size=SIZE, tokenizer=words)
    return project


def test_one_video_becomes_film_sheets_and_latents(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict.main(["street ä.mp4", "--frames", str(FRAMES), "--out", "found"])
    out = project / "found"
    assert sorted(path.name for path in out.iterdir()) == [
        "attention.png",
        "fixations.mp4",
        "predictions.json",
        "predictions.npz",
        "predictions.png",
    ]
    assert "found" in capsys.readouterr().out
    with av.open(str(out / "fixations.mp4")) as container:
        assert len(list(container.decode(video=0))) == FRAMES
    facts = json.loads((out / "predictions.json").read_text())
    arrays = np.load(out / "predictions.npz", allow_pickle=False)
    assert arrays["fine"].shape == (FRAMES, 4, SIZE // 8, SIZE // 8)
    for name in ("coarse", "fine"):
        errors = ((arrays[name] - arrays["actual"]) ** 2).mean((1, 2, 3))
        np.testing.assert_allclose(facts["losses"][name], errors, rtol=1e-3)
    assert facts["losses"]["persistence"][0] is None
    assert facts["pts_seconds"] == sorted(facts["pts_seconds"])
    assert len(facts["fixations"]["fine"]) == FRAMES


@pytest.mark.parametrize("options", ["", OPTIONS])
def test_a_question_about_a_video_is_answered_in_both_passes(
    asked: Path, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The film is of this question; the answer to another one may differ, and so do the looks."""
    call = ["street ä.mp4", "--frames", str(FRAMES)] + (["--options", options] if options else [])
    predict.main([*call, "--ask", f" {ASK} ", "--out", "found"])
    said = capsys.readouterr().out
    out = asked / "found"
    names = ["answers.json", "attention.png", "fixations.mp4"]
    assert sorted(path.name for path in out.iterdir()) == names
    with av.open(str(out / "fixations.mp4")) as container:
        assert len(list(container.decode(video=0))) == FRAMES
    facts = json.loads((out / "answers.json").read_text())
    assert facts["question"] == ASK
    assert list(facts["answers"]) == ["coarse", "fine"]
    for name, given in facts["answers"].items():
        assert f"{name} pass: {given['text']} (probability {given['probability']:.2f})" in said
        assert 0 < given["probability"] <= 1
        if options:
            assert given["text"] in ("a square", "a dog", "nothing at all")
            assert given["probability"] > 1 / 3
        else:
            words = load_model(asked / "models/instructed").tokenizer
            assert words is not None
            assert set(given["text"].split()) <= words.tokenizer.get_vocab().keys()
    assert facts["pts_seconds"] == sorted(facts["pts_seconds"])
    assert len(facts["fixations"]["fine"]) == FRAMES
    predict.main([*call, "--ask", "nothing", "--out", "again"])
    other = json.loads((asked / "again/answers.json").read_text())
    assert other["answers"] != facts["answers"]
    assert other["pts_seconds"] == facts["pts_seconds"]


def test_a_question_takes_a_model_that_answers_and_one_of_those_a_question(asked: Path) -> None:
    needed = r"models/foveated answers no questions: `dvc repro answers/dvc.yaml` trains models/in"
    with pytest.raises(FvlmError, match=needed):
        predict.main(["street ä.mp4", "--ask", ASK, "--model", "models/foveated"])
    with pytest.raises(FvlmError, match=r"models/instructed answers questions: give it one with"):
        predict.main(["street ä.mp4", "--model", "models/instructed"])
    shutil.rmtree(asked / "models/instructed")
    with pytest.raises(FvlmError, match=r"models/instructed: no such folder"):
        predict.main(["street ä.mp4", "--ask", ASK])
    assert not (asked / "predictions").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ask", "  "], "a question has words"),
        (["--ask", ASK, "--options", "a dog"], "must be two or more that differ, separated by co"),
        (["--ask", ASK, "--options", "a dog,,a cat"], "must be two or more that differ"),
        (["--ask", ASK, "--options", "a dog, a dog"], "must be two or more that differ"),
        (["--options", "a,b"], "--options needs --ask"),
    ],
)
def test_a_question_that_is_none_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        predict.main(["street ä.mp4", *arguments])
    assert message in capsys.readouterr().err


def test_a_bad_file_is_a_clear_error(project: Path) -> None:
    (project / "page.mp4").write_text("<html>not a video</html>" * 100)
    with pytest.raises(FvlmError, match=r"page.mp4 cannot be used: \w+: "):
        predict.main(["page.mp4"])
    advice = r"too_few_frames: \d+ frames, 9999 are needed; choose fewer with --frames"
    with pytest.raises(FvlmError, match=advice):
        predict.main(["street ä.mp4", "--frames", "9999"])
    with pytest.raises(FvlmError, match=r"nothing.mp4 is not a file"):
        predict.main(["nothing.mp4"])
    with pytest.raises(FvlmError, match="models is not a file"):
        predict.main(["models"])
    assert not (project / "predictions").exists()


@pytest.mark.usefixtures("project")
def test_a_model_that_answers_nothing_says_which_one_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["street ä.mp4", "--ask", "What is it?"]
    with pytest.raises(FvlmError, match=r"answers no questions: `dvc repro answers/dvc.yaml`"):
        predict.main([*asked, "--model", "models/foveated"])
    for options in ("a", "a,", "a,a"):
        with pytest.raises(SystemExit, match="2"):
            predict.main([*asked, "--options", options])
        assert "must be two or more that differ" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        predict.main([asked[0], "--options", "a,b"])
    assert "--options needs --ask" in capsys.readouterr().err


def test_no_file_is_decoded_in_this_process(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded outside the sandbox")

    monkeypatch.setattr("fvlm.video.decode.open_stream", refuse)
    frames, seconds = predict.decode(
        project / "street ä.mp4", (0.0, None), num_frames=FRAMES, size=SIZE
    )
    assert frames.shape == (FRAMES, 3, SIZE, SIZE)
    assert len(seconds) == FRAMES


def test_a_part_of_a_video_is_looked_at(project: Path) -> None:
    video = project / "street ä.mp4"
    seconds = {
        span: predict.decode(video, span, num_frames=FRAMES, size=SIZE)[1]
        for span in ((0.0, None), (0.0, 1.0), (1.0, None))
    }
    assert max(seconds[0.0, 1.0]) < 1 <= min(seconds[1.0, None])
    assert max(seconds[1.0, None]) == pytest.approx(max(seconds[0.0, None]), abs=0.5)
    with pytest.raises(FvlmError, match=r"--end \(1\) must be behind --start \(2\)"):
        predict.main(["street ä.mp4", "--start", "2", "--end", "1"])
    with pytest.raises(FvlmError, match=r"too_few_frames: .*; choose fewer with --frames, or more"):
        predict.main(["street ä.mp4", "--start", "900"])


def test_other_encoder_weights_are_refused(project: Path) -> None:
    path = project / "models/foveated" / CONFIG
    config = read_json(path)
    config["provenance"]["vae"]["sha256"] = "0" * 64
    write_json(path, config)
    with pytest.raises(WeightsError, match=r"trained with other weights of .*vae"):
        load_encoders()


def test_the_command_line_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        predict.main(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in (
        "a video file of at least",
        "--out",
        "models/foveated",
        "as in the model's train",
    ):
        assert word in text
    with pytest.raises(SystemExit):
        predict.main(["a.mp4", "--frames", "2"])
    assert "at least 3" in capsys.readouterr().err


def test_a_model_of_another_machine_needs_its_encoders_alone(
    project: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of any checkout; they lie beside the model, or where it is said."""
    away = project / "away"
    shutil.copytree(project / "models/foveated", away / "model")
    monkeypatch.chdir(away)
    config = read_json(away / "model" / CONFIG)
    for part in ("dino", "vae"):
        config["provenance"][part]["source"] = f"assets/{part}"
    write_json(away / "model" / CONFIG, config)
    call = ["predict", "../street ä.mp4", "--model", "model", "--out", "found"]
    with pytest.raises(SystemExit, match="1"):
        door.main(call)
    with pytest.raises(WeightsError, match=r"assets/dino and the autoencoder assets/vae; one is n"):
        load_encoders("model")
    shutil.copytree(tiny_models / "dino", away / "model/dino")
    door.main([*call, "--vae", f"{tiny_models}/vae"])
    arrays = np.load(away / "found/predictions.npz", allow_pickle=False)
    assert len(arrays["fine"]) == 4  # frames, as in its training
    assert sorted(path.name for path in away.iterdir()) == ["found", "model"]
