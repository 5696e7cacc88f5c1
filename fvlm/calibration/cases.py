"""Models and clips that must not fool the verdict: real from the evaluate stage on.

handicapped_coarse  the coarse pass of a trained model is spoilt: a ratio above 1 without a gain
message_channel     a deep query that is a token, with even attention in every pass: whatever it
                    gains was carried past the attention
replicates          6 videos in 20 copies each: no more evidence than the 6
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from fvlm.clips.batch import Batch
from fvlm.core.document import Document
from fvlm.core.io import read_json
from fvlm.core.seeding import generator
from fvlm.model.build import CONFIG, load_model, save_model
from fvlm.model.foveated import FoveatedModel, frame_losses
from fvlm.model.query_attention import DeepAttention
from fvlm.shards.manifest import read_manifest, write_manifest
from fvlm.shards.read import open_shards
from fvlm.shards.write import Sample, write_shard
from fvlm.statistics.evaluation import HeldOut
from fvlm.statistics.ratio import DYNAMIC, Estimate
from fvlm.statistics.verdict import decide, is_above, unbeaten

FILMS, COPIES = 6, 20
HANDICAP, DOUBLINGS = 1.1, 10
SAME_WIDTH = 0.1
GAINS = ("one_training", "validated", "proof_of_concept", "very_promising")


class Case(Document):
    """What the evaluate stage said of a case, and whether that is right.

    reference: of handicapped_coarse the ratio relative to frame 2, of message_channel message_only
    / fine loss, of replicates the ratio of the 6 videos without copies.
    """

    caught: Annotated[int, "{}_caught"]
    verdict: Annotated[str, "{}_verdict"]
    ratio: Annotated[Estimate, "{}_ratio"]
    reference: Annotated[Estimate, "{}_reference"]


def judge_cases(found: Mapping[str, HeldOut]) -> dict[str, Case]:
    """Cases by name, from what evaluate found on `handicapped_coarse`, `message_channel`,
    `replicates`, and `replicates_alone`.
    """
    spoilt, message = found["handicapped_coarse"], found["message_channel"]
    copied, alone = found["replicates"], found["replicates_alone"]
    widths = [_width(part.coarse_fine_ratio_dynamic) for part in (copied, alone)]
    caught = {
        # Without a ratio above 1 there would be nothing to be caught.
        "handicapped_coarse": is_above(spoilt.coarse_fine_ratio_dynamic) and not _is_gain(spoilt),
        "message_channel": "message_only" in unbeaten(message.controls) and not _is_gain(message),
        "replicates": copied.groups == FILMS and abs(widths[0] / widths[1] - 1) <= SAME_WIDTH,
    }
    references = {
        "handicapped_coarse": spoilt.over_frame_2,
        "message_channel": message.against("message_only"),
        "replicates": alone.coarse_fine_ratio_dynamic,
    }
    return {
        name: Case(
            caught=int(caught[name]),
            verdict=decide(found[name]),
            ratio=found[name].coarse_fine_ratio_dynamic,
            reference=reference,
        )
        for name, reference in references.items()
    }


def missed_cases(cases: Mapping[str, Case]) -> list[str]:
    """What was not caught, one line each."""
    return [
        f"{name}_caught is 0, must be 1: verdict {case.verdict}, ratio {case.ratio.value}"
        for name, case in cases.items()
        if not case.caught
    ]


def save_handicapped(source: Path, target: Path, batch: Batch) -> None:
    """The model of `source` with a mode token that spoils the coarse pass on `batch` by 10%."""

    def spoil(model: FoveatedModel, strength: float) -> None:
        token = model.mode_tokens["coarse"]
        noise = generator(0, "handicap").standard_normal(token.shape)
        token += torch.from_numpy(noise).to(token) * strength * token.norm() / len(token) ** 0.5

    _save_changed(source, target, batch, spoil)


def save_message_channel(source: Path, target: Path, batch: Batch) -> None:
    """The model of `source` with even attention, and a static query that drowns what it reads.

    Its queries must be deep and tokens: the predicted ones carry their message past the attention.
    """

    def drown(model: FoveatedModel, strength: float) -> None:
        assert isinstance(model.attention, DeepAttention)
        assert model.attention.role == "token"
        for name, parameter in model.attention.named_parameters():
            if ".q." in name:
                parameter.zero_()
        model.q_static.mul_(strength)

    _save_changed(source, target, batch, drown)


def write_replicates(source: Path, target: Path, *, copies: int) -> None:
    """Encode shards with FILMS of the held-out clips of `source`, each in copies of one group."""
    manifest, held_out = read_manifest(source), open_shards(source, split="val")

    def samples() -> Iterator[Sample]:
        for film in range(FILMS):
            arrays = held_out.read([film], fields=list(held_out.fields))
            fields = {f"{name}.npy": np.ascontiguousarray(v[0]) for name, v in arrays.items()}
            facts = held_out.metadata(film)
            for copy in range(copies):
                name = {"video_id": f"film {film}, copy {copy}", "group": f"film {film}"}
                yield f"film-{film}-copy-{copy}", {**fields, "json": facts | name}

    target.mkdir(parents=True, exist_ok=True)
    name = "val-000000.tar"
    own = {"name": name, "split": "val", "fingerprint": "replicates"}
    training = [shard for shard in manifest["shards"] if shard["split"] == "train"]
    for shard in training:
        link = target / shard["name"]
        link.unlink(missing_ok=True)
        link.symlink_to((source / shard["name"]).resolve())
    facts = write_shard(target / name, samples())
    write_manifest(target, manifest | {"shards": [*training, own | asdict(facts)]})


def _save_changed(
    source: Path,
    target: Path,
    batch: Batch,
    change: Callable[[FoveatedModel, float], None],
) -> None:
    """Save the model with the smallest change, of strength 1, 2, 4 .., that gives a ratio of 1.1.

    Where none does, with the strongest one.
    """
    for strength in 2.0 ** np.arange(DOUBLINGS):
        model = load_model(source)
        with torch.no_grad():
            change(model, float(strength))
            found = model(batch.inputs, batch.latents)
        coarse, fine = (
            frame_losses(part, batch.latents)[:, DYNAMIC].mean()
            for part in (found.coarse, found.fine)
        )
        if coarse / fine >= HANDICAP:
            break
    save_model(model.state_dict(), read_json(source / CONFIG), target)


def _is_gain(found: HeldOut) -> bool:
    return decide(found) in GAINS


def _width(ratio: Estimate) -> float:
    """Width of the interval, of the logarithm; NaN without one."""
    if ratio.low is None or ratio.high is None:
        return float("nan")
    return float(np.log(ratio.high / ratio.low))
