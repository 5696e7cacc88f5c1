"""Models and clips that must not fool the verdict: real from the evaluate stage on.

handicapped_coarse  the coarse pass of a trained model is spoilt: a ratio above 1 without a gain
message_channel     a deep query that is a token, with even attention in every pass: a ratio above 1
                    that is carried past the attention
replicates          6 videos in 20 copies each: no more evidence than the 6
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from fvlm.clips.batch import Batch
from fvlm.core.document import Document
from fvlm.core.seeding import generator
from fvlm.model.build import Architecture
from fvlm.model.foveated import FoveatedModel, frame_losses
from fvlm.model.query_attention import DeepAttention
from fvlm.model.saved import load_model, read_config, save_model
from fvlm.shards.manifest import EncodedManifest, ShardEntry, read_manifest, write_manifest
from fvlm.shards.read import open_shards
from fvlm.shards.write import Sample, write_shard
from fvlm.statistics.evaluation import HeldOut
from fvlm.statistics.ratio import DYNAMIC, Estimate
from fvlm.statistics.verdict import decide, is_above, unbeaten

FILMS, COPIES = 6, 20
HANDICAP, DOUBLINGS = 1.1, 10
TEMPTING = 1.05  # a smaller ratio would tempt nobody: nothing was there to be caught
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
        "handicapped_coarse": _tempts(spoilt) and not _is_gain(spoilt),
        "message_channel": _tempts(message)
        and "message_only" in unbeaten(message.controls)
        and not _is_gain(message),
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
    """The model of `source` with a coarse pass that is worse on `batch`, by 10% from frame 3 on.

    Its static query and its mode token get noise, the least of strength 1, 2, 4 .. that suffices,
    or the strongest.
    """
    for strength in 2.0 ** np.arange(DOUBLINGS):
        model = load_model(source)
        rng = generator(0, "handicap")
        with torch.no_grad():
            for spoilt in (model.q_static, model.mode_tokens["coarse"]):
                noise = torch.from_numpy(rng.standard_normal(spoilt.shape)).to(spoilt)
                spoilt += noise * strength * spoilt.norm() / len(spoilt) ** 0.5
            found = model(batch.inputs, batch.latents)
        coarse, fine = (
            frame_losses(part, batch.latents)[:, DYNAMIC].mean()
            for part in (found.coarse, found.fine)
        )
        if coarse / fine >= HANDICAP:
            break
    _save_changed(model, source, target)


def save_message_channel(source: Path, target: Path) -> None:
    """The model of `source` with even attention, and queries that are tokens.

    Its queries are deep questions: as tokens they join what they read. The static ones were never
    trained for that, the predicted ones happen to disturb less: a ratio above 1, and no pass looks
    anywhere. `q_init` becomes `q_static`, so that frame 2 does not give it away.
    """
    model = load_model(source)
    assert isinstance(model.attention, DeepAttention)
    with torch.no_grad():
        for name, parameter in model.attention.named_parameters():
            if ".q." in name:
                parameter.zero_()
        model.q_init.copy_(model.q_static)
    _save_changed(model, source, target, query_role="token")


def write_replicates(source: Path, target: Path, *, copies: int) -> None:
    """Encode shards with FILMS of the held-out clips of `source`, each in copies of one group."""
    manifest = read_manifest(source, EncodedManifest)
    held_out = open_shards(source, split="val")

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
    training = [shard for shard in manifest.shards if shard.split == "train"]
    for shard in training:
        link = target / shard.name
        link.unlink(missing_ok=True)
        link.symlink_to((source / shard.name).resolve())
    facts = write_shard(target / name, samples())
    known = facts.model_dump(exclude={"md5"})
    own = ShardEntry(name=name, split="val", fingerprint="replicates", **known)
    write_manifest(target, manifest.model_copy(update={"shards": [*training, own]}))


def _save_changed(model: FoveatedModel, source: Path, target: Path, **changes: str) -> None:
    """Save the model as one like that of `source`, with changed keys of its section `model`."""
    config = read_config(source)
    known = {name: getattr(config, name) for name in Architecture.model_fields}
    known["model"] = config.model.model_copy(update=changes)
    save_model(
        model.state_dict(),
        Architecture(**known),
        target,
        preprocessing=config.preprocessing,
        seed=config.seed,
        lambda_coarse=config.lambda_coarse,
        training="changed by hand",
        trained_by=config.trained_by,
    )


def _tempts(found: HeldOut) -> bool:
    ratio = found.coarse_fine_ratio_dynamic
    return ratio.value is not None and ratio.value >= TEMPTING and is_above(ratio)


def _is_gain(found: HeldOut) -> bool:
    return decide(found) in GAINS


def _width(ratio: Estimate) -> float:
    """Width of the interval, of the logarithm; NaN without one."""
    if ratio.low is None or ratio.high is None:
        return float("nan")
    return float(np.log(ratio.high / ratio.low))
