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
from fvlm.core.errors import FvlmError, WeightsError
from fvlm.core.io import read_json, write_json
from fvlm.encoders.dino import load_dino
from fvlm.encoders.vae import load_vae
from fvlm.model.build import build_model
from fvlm.model.hub import CONFIG
from fvlm.model.video import load_encoders
from tests import tiny

SIZE, FRAMES = 32, 5


@pytest.fixture
def project(video_folder: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with encoders, a model for their tokens, and a video."""
    monkeypatch.chdir(video_folder)
    (dino, dino_source), (vae, vae_source) = (
        load_dino(f"{tiny_models}/dino"),
        load_vae(f"{tiny_models}/vae"),
    )
    manifest = tiny.encoded_manifest(
        (8, dino.num_tokens(SIZE), 16),
        (8, *vae.latent_shape(SIZE)),
        dino=asdict(dino_source) | {"blocks": dino.blocks, "layer": dino.blocks - 1},
        vae=asdict(vae_source),
    )
    params = tiny.model_params(f"{tiny_models}/llm", query_layers=1, head_channels=8)
    model, architecture = build_model(params, manifest)
    tiny.save_model(model, architecture, video_folder / "models/foveated", frame_size=SIZE)
    return video_folder


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
