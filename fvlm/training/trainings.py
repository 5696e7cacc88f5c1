"""One training from shards to a saved model, or handed back when it was done before."""

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fvlm.clips.batch import Batch
from fvlm.clips.latents import training_latents
from fvlm.clips.order import rows_at, trained_frames
from fvlm.clips.questions import Reader
from fvlm.clips.reader import BatchMemory
from fvlm.clips.tokenizer import AnswerTokenizer
from fvlm.core.device import peak_memory_gib
from fvlm.core.identity import made_by
from fvlm.core.io import hash_json, write_csv
from fvlm.core.kept import Claims
from fvlm.core.params import PARAMS, read_yaml
from fvlm.core.provenance import git_commit
from fvlm.core.seeding import torch_seed
from fvlm.model.build import Architecture, build_model, weights_behind
from fvlm.model.foveated import FoveatedModel
from fvlm.model.saved import Preprocessing, Tokenizer, save_model
from fvlm.shards.manifest import EncodedManifest, FrameManifest, read_manifest
from fvlm.tracking.tracker import Tracker, tell_gpu_is_unseen
from fvlm.training.checkpoint import Checkpoints
from fvlm.training.data import (
    Shards,
    Training,
    contents_of,
    has_split,
    open_split,
    tokenizer_of,
)
from fvlm.training.distributed import check_same, from_main, is_main, verify_together, whole
from fvlm.training.finished import CURVE, FinishedTrainings, read_curve
from fvlm.training.longer import whatever_length, where_it_begins
from fvlm.training.loop import OutOfTimeError, Row, train
from fvlm.training.objective import Objective, batch_losses
from fvlm.training.optim import TrainParams
from fvlm.training.preference import preference_losses, reference_of, with_reference
from fvlm.training.start import hash_start, load_start, start_as_ar1
from fvlm.training.validation import PREFIX, Validation, of_these_clips, plan_validation

DATA_SECTIONS = ("collect", "filter", "decode", "encode")  # of params.yaml
# How a training is run, not what it computes: these may change between its parts.
NOT_IDENTITY = {
    "coarse_only",
    "pooled_tokens",
    "max_hours",
    "checkpoint_samples",
    "parallel",
    "gradient_checkpointing",
    "seeds",
    "validate_samples",
    "start",  # by the content of its weights
}


@dataclass(frozen=True)
class Trained:
    """name: of the training, and of the folder of its checkpoints, which a longer one goes on from;
    history: rows of its steps; rate: clips a second of this run.
    """

    name: str
    state: str
    history: list[Row]
    rate: float | None


def run_training(
    training: Training,
    shards: Shards,
    finished: FinishedTrainings,
    claims: Claims | None,
    *,
    device: torch.device,
    deadline: float,
) -> Trained:
    """Train, go on training, or hand back; the model lies in `training.folder` then.

    A training goes on from the checkpoints of a shorter one that differs in nothing else, where the
    learning rate does not depend on the length.

    Of several processes the main one has `claims`, reads checkpoints and writes. deadline: on the
    monotonic clock. Raises OutOfTimeError with the state saved.
    """
    verify_together([shards.encoded, *([shards.frames] * (training.params.input == "frames"))])
    validation = _plan_validation(training, shards)
    identity = identify(training, shards, device)
    name = hash_json(identity)[:20]
    shared = whatever_length(identity)
    family, steps = hash_json(shared)[:20], training.params.steps
    kept_as = (shared, family) if training.params.schedule == "constant" else (identity, name)
    checkpoints = Checkpoints(finished.root, *kept_as)
    state = checkpoints.folder.name
    check_same("code, parameters, data or weights", name)
    if claims is not None:
        claims.wait(state, f"the same training ({training.title})")
    known = torch.tensor(
        is_main() and finished.restore(name, training.folder, family=family, steps=steps)
    )
    if bool(from_main(known, like=known)):
        if claims is None:
            return Trained(name, state, [], None)
        claims.release(state)
        what = "handed back: trained before with the same code, data and parameters"
        print(f"{training.title}: {what}")
        history = of_these_clips(read_curve(training.folder / CURVE), validation)
        if validation and not any(name.startswith(PREFIX) for row in history for name in row):
            print("no curve of held-out clips: others were read then; `fvlm forget train` has one")
        with _tracker(training, identity, name) as tracker:
            tracker.log_history(history)  # in case that no server was there
        return Trained(name, state, history, None)
    if claims is not None:
        before = finished.shorter(family, steps)
        if told := where_it_begins(training.params, checkpoints.reached(), before):
            print(f"{training.title}: {told}")
    trained = _train(training, shards, checkpoints, identity, validation, device, deadline)
    if claims is not None:
        finished.remember(name, training.folder, family=family, steps=steps)
        # Only now: until here they are all that is left after a crash.
        checkpoints.finish(keep=training.params.schedule == "constant")
        claims.release(state)
    return trained


def identify(training: Training, shards: Shards, device: torch.device) -> dict[str, Any]:
    """All that decides a model: code, parameters, data by content, pretrained parts."""
    params, manifest = training.params, read_manifest(shards.encoded, EncodedManifest)
    asked: dict[str, Any] = {"asking": asdict(training.asking)} if training.asking else {}
    if training.prefer:
        asked["prefer"] = training.prefer.model_dump()
    return {
        "made_by": made_by(run_training),
        "device": device.type,
        "model": training.model.model_dump(),
        "coarse_only": training.coarse_only,
        "pooled_tokens": training.pooled_tokens,
        "seed": params.seed,
        "train": params.model_dump(exclude=NOT_IDENTITY),
        "start": hash_start(params.start),
        "data": hash_json(contents_of(training, shards)),
        "weights": weights_behind(training.model, manifest, tokenizer_of(training, shards)),
    } | asked


def _plan_validation(training: Training, shards: Shards) -> Validation | None:
    params = training.params
    if params.validate_samples == 0 or not has_split("val", training, shards):
        return None
    held_out, trained = (open_split(split, training, shards) for split in ("val", "train"))
    held_out.check_frames(params.num_frames, "train.num_frames")
    return plan_validation(held_out, trained, params)


def _train(
    training: Training,
    shards: Shards,
    checkpoints: Checkpoints,
    identity: dict[str, Any],
    validation: Validation | None,
    device: torch.device,
    deadline: float,
) -> Trained:
    params, name = training.params, hash_json(identity)[:20]
    prepared = _prepare(training, shards, device, checkpoints.folder)
    began, rows = time.monotonic(), list[Row]()
    if device.type == "cuda" and is_main():
        tell_gpu_is_unseen()
    with _tracker(training, identity, name) as tracker:

        def on_step(row: Row) -> None:
            rows.append(row)
            (shown,) = of_these_clips([row], validation)
            tracker.log(shown, memory_gib=peak_memory_gib(device))

        try:
            state = train(
                prepared.model,
                prepared.load,
                params,
                deadline=deadline,
                checkpoints=checkpoints,
                device=device,
                on_resume=lambda rows: tracker.log_history(of_these_clips(rows, validation)),
                on_step=on_step,
                title=training.title,
                validation=validation,
                objective=prepared.objective,
            )
        except OutOfTimeError:
            tracker.close(status="KILLED")  # it will be resumed
            raise
    rate = len(rows) * params.samples_per_step / (time.monotonic() - began)
    weights = whole(prepared.model.state_dict())
    if is_main():
        save_model(
            weights,
            prepared.architecture,
            training.folder,
            preprocessing=Preprocessing(
                frame_size=read_manifest(shards.frames, FrameManifest).frames.shape[-1],
                num_frames=params.num_frames,
            ),
            seed=params.seed,
            lambda_coarse=params.lambda_coarse,
            training=name,
            trained_by=made_by(run_training),
            tokenizer=prepared.tokenizer,
        )
        write_csv(training.folder / CURVE, state.history)
    history = of_these_clips(state.history, validation)
    return Trained(name, checkpoints.folder.name, history, rate)


def _tracker(training: Training, identity: dict[str, Any], name: str) -> Tracker:
    """One MLflow run a training, also when it is resumed; only the main process has one."""
    document = read_yaml(PARAMS)  # what its data was made with is shown, too
    return Tracker(
        name,
        title="coarse-only " * training.coarse_only
        + f"{training.pooled_tokens} pooled tokens, " * (training.pooled_tokens > 0)
        + f"seed {training.params.seed}",
        params={name: document.get(name, {}) for name in DATA_SECTIONS} | identity,
        tags={
            "git_commit": git_commit(Path()),
            "data": identity["data"],
            "weights": hash_json(identity["weights"]),
        },
        active=is_main(),
    )


@dataclass(frozen=True)
class _Prepared:
    model: FoveatedModel
    architecture: Architecture
    tokenizer: Tokenizer | None
    load: Callable[[range], Batch]
    objective: Objective


def _prepare(
    training: Training, shards: Shards, device: torch.device, kept: Path | None = None
) -> _Prepared:
    """The model with its first weights, what loads its batches, and what it minimises.

    kept: the folder that may hold what the first weights make of all batches.
    """
    params = training.params
    manifest = read_manifest(shards.encoded, EncodedManifest)
    tokenizer = tokenizer_of(training, shards)
    two = BatchMemory(2, pinned=device.type == "cuda")  # one is computed while the next is read
    reader = open_split("train", training, shards, two)
    reader.check_frames(params.num_frames, "train.num_frames")
    torch.manual_seed(torch_seed(params.seed, "weights"))
    model, architecture = build_model(
        training.model,
        manifest,
        input=params.input,
        coarse_only=training.coarse_only,
        pooled_tokens=training.pooled_tokens,
        vocabulary=tokenizer.vocabulary if isinstance(tokenizer, AnswerTokenizer) else 1,
    )
    if params.start:
        load_start(params.start, model, architecture, tokenizer)
    else:
        start_as_ar1(model, training_latents(shards.encoded, params.num_frames))
    if params.encoder_lr > 0:
        model.train_encoder()
    objective: Objective = batch_losses

    def load(positions: range) -> Batch:
        return load_batch(reader, positions, params)

    if training.prefer:
        objective = partial(preference_losses, prefer=training.prefer)
        known = reference_of(model, load, params, device, kept)
        load = partial(with_reference, load, known)
    return _Prepared(model, architecture, tokenizer, load, objective)


def first_steps(
    training: Training, shards: Shards, *, device: torch.device, steps: int
) -> list[Row]:
    """The rows of the first steps, trained anew; nothing of it is kept."""

    class EnoughError(Exception):
        pass

    rows: list[Row] = []

    def on_step(row: Row) -> None:
        rows.append(row)
        if len(rows) == steps:
            raise EnoughError

    prepared = _prepare(training, shards, device)
    with tempfile.TemporaryDirectory() as folder, suppress(EnoughError):
        checkpoints = Checkpoints(Path(folder), {}, "sample")
        train(
            prepared.model,
            prepared.load,
            training.params,
            checkpoints=checkpoints,
            device=device,
            on_step=on_step,
            title="the same?",
            objective=prepared.objective,
        )
    return rows


def load_batch(reader: Reader, positions: range, params: TrainParams) -> Batch:
    """The clips at these positions of the sample stream, each with its own frames."""
    rows = rows_at(positions, clips=len(reader), seed=params.seed)
    frames = trained_frames(
        positions,
        stored=reader.stored,
        count=params.num_frames,
        seed=params.seed,
        choice=params.frames,
    )
    return reader.read(rows, frames)
