"""Rules between the sections of params.yaml: each key that breaks one gets a line.

A line names the key, what it must be and why, what was got, and the nearest value that fits. The
stages check again what they are given: shards and models may be older than params.yaml.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from operator import le
from pathlib import Path
from typing import Any

from fvlm.calibration.trials import CalibrateParams
from fvlm.cli.parts import UNTRAINED, Parts
from fvlm.core.errors import FvlmError, ParamsError
from fvlm.core.params import Params, Rule
from fvlm.corpus.listing import CollectParams
from fvlm.encoders.frames import EncodeParams
from fvlm.evaluation.losses import EvaluateParams
from fvlm.evaluation.quiz import QuizParams
from fvlm.model.foveated import ModelParams
from fvlm.report.choice import ReportParams
from fvlm.training.optim import InstructParams, PooledCount, PreferParams, TrainParams
from fvlm.training.start import hash_start
from fvlm.uncertainty.sampling import TowerParams, UncertaintyParams
from fvlm.uncertainty.sites import match_sites
from fvlm.uncertainty.tower import Tower
from fvlm.video.accept import FilterParams
from fvlm.video.clips import DecodeParams
from pipeline.paths import INSTRUCTED, MODEL, PREFERRED

HEAD = 32  # width of an attention head of an untrained language model
Lines = Iterator[str]


def _line(key: str, must: str, got: Any, nearest: Any) -> str:
    shown = [str(value).lower() if isinstance(value, bool) else value for value in (got, nearest)]
    return f"{key}: must be {must}, got {shown[0]}; nearest: {shown[1]}"


def _at_most(section: str, key: str, decode_key: str, least: int = 1) -> Rule:
    """A key may not ask for more than `decode` stores."""

    def rule(p: "Sections") -> Lines:
        got, most = getattr(getattr(p, section), key), getattr(p.decode, decode_key)
        if got > most >= least:
            yield _line(f"{section}.{key}", f"<= {most} (decode.{decode_key})", got, most)
        elif got > most:
            reason = f">= {least}, which {section}.{key} needs"
            yield _line(f"decode.{decode_key}", reason, most, least)

    return rule


def _enough_frames(p: "Sections") -> Lines:
    chosen = p.uncertainty
    if chosen.max_clips * chosen.frames_per_clip < 2:
        reason = ">= 2 with uncertainty.frames_per_clip: 1"
        yield _line("uncertainty.max_clips", reason, chosen.max_clips, 2)


def _tokens_are_final(p: "Sections") -> Lines:
    if p.model.intermediate_tokens and p.train.input == "frames":
        yield _line("model.intermediate_tokens", "false with train.input: frames", True, False)


def _text_needs_words(p: "Sections") -> Lines:
    if p.model.text == "answer":
        reason = "none, condition or caption: the stage instruct makes of it what answers"
        yield _line("model.text", reason, p.model.text, "none")
    elif p.model.text != "none" and p.model.llm.startswith(UNTRAINED):
        reason = f"none with model.llm: {p.model.llm}, which has no tokenizer"
        yield _line("model.text", reason, p.model.text, "none")


def _untrained_has_a_shape(p: "Sections") -> Lines:
    llm = p.model.llm
    if not llm.startswith(UNTRAINED):
        return
    match = re.fullmatch(rf"{UNTRAINED}(\d+)x(\d+)", llm)
    width, blocks = (int(match[1]), int(match[2])) if match else (0, 0)
    fitting = max(1, round(width / HEAD)) * HEAD, max(1, blocks)
    if (width, blocks) != fitting:
        reason = f"{UNTRAINED}WIDTHxBLOCKS with a width that is a multiple of {HEAD}"
        yield _line("model.llm", reason, llm, f"{UNTRAINED}{fitting[0]}x{fitting[1]}")
    elif p.model.llm_layers > blocks:
        reason = f"0 (all) to {blocks}, the number of blocks of {llm}"
        yield _line("model.llm_layers", reason, p.model.llm_layers, blocks)


def _calibration_seeds(p: "Sections") -> Lines:
    seeds = p.calibrate.seeds
    fitting = list(dict.fromkeys(map(abs, seeds)))
    if seeds != fitting:
        yield _line("calibrate.seeds", "different numbers from 0 on", seeds, fitting)


def _start_is_a_saved_model(section: str, *, made: Path | None, deleted: Sequence[Path]) -> Rule:
    """A section's `start`. made: the folder that an earlier stage writes, which need not be there
    yet; deleted: folders whose models this training, or one behind it, deletes before it begins.
    """

    def rule(p: "Sections") -> Lines:
        start: str = getattr(p, section).start
        if not start or (made and _is_inside(start, made)):
            return
        for folder in deleted:
            if _is_inside(start, folder):
                yield (
                    f"{section}.start: {start}: a training deletes what lies in {folder}: give a "
                    "copy of the folder, or one that `fvlm export` wrote"
                )
                return
        try:
            hash_start(start)
        except FvlmError as error:
            yield f"{section}.start: {error}"

    return rule


def _is_inside(path: str, folder: Path) -> bool:
    return Path(path).resolve().is_relative_to(folder.resolve())


def _asked_once_behind(p: "Sections") -> Lines:
    """Beside a model that knows its question; without it, both would be asked alike."""
    if p.instruct.question_after and p.instruct.question != "before":
        reason = f"false with instruct.question: {p.instruct.question} (before is its counterpart)"
        yield _line("instruct.question_after", reason, True, False)


def _tokens_are_stored(p: "Sections") -> Lines:
    if p.train.input == "features" and not p.encode.tokens:
        yield (
            "encode.tokens: must be true with train.input: features, which reads them; "
            "nearest: true, or train.input: frames"
        )


class Sections(Params):
    """All of params.yaml, and the rules that need nothing else."""

    rules = (
        _at_most("train", "num_frames", "num_frames"),
        _at_most("evaluate", "num_frames", "num_frames", least=3),
        _at_most("uncertainty", "frames_per_clip", "num_frames"),
        _at_most("uncertainty", "downsample", "frame_size", least=2),
        _enough_frames,
        _tokens_are_final,
        _tokens_are_stored,
        _text_needs_words,
        _untrained_has_a_shape,
        _calibration_seeds,
        _start_is_a_saved_model("train", made=None, deleted=[MODEL]),
        _start_is_a_saved_model("instruct", made=MODEL, deleted=[INSTRUCTED, PREFERRED]),
        _asked_once_behind,
    )

    collect: CollectParams
    filter: FilterParams
    decode: DecodeParams
    encode: EncodeParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams
    report: ReportParams
    uncertainty: UncertaintyParams
    instruct: InstructParams
    prefer: PreferParams
    quiz: QuizParams
    calibrate: CalibrateParams


def rules_of(parts: Parts) -> list[Rule]:
    """The rules between params.yaml and the pretrained parts that it names.

    A rule says nothing of a part that cannot be looked up.
    """

    def with_parts(rule: Callable[[Parts, Sections], Lines]) -> Rule:
        return lambda sections: rule(parts, sections)

    rules = (
        _usable("encode.dino", lambda p: parts.dino(p.encode.dino)),
        _usable("encode.vae", lambda p: parts.vae(p.encode.vae)),
        _usable("model.llm", lambda p: parts.blocks(p.model.llm)),
        _dino_layers,
        _stored_layer,
        _query_layers,
        _llm_layers,
        _frame_size,
        _pooled_grid("train"),
        _pooled_grid("instruct"),
        _tokenizer,
        _towers,
    )
    return [with_parts(rule) for rule in rules]


def _usable(key: str, look: Callable[["Sections"], object]) -> Callable[[Parts, "Sections"], Lines]:
    def rule(parts: Parts, p: Sections) -> Lines:
        look(p)
        if key in parts.unusable:
            yield parts.unusable[key]

    return rule


def _kept_blocks(parts: Parts, p: Sections) -> int | None:
    """How many blocks of the patch encoder are kept; None when that is not known."""
    dino = parts.dino(p.encode.dino)
    if dino is None:
        return p.encode.dino_layers or None
    return min(p.encode.dino_layers or dino.blocks, dino.blocks)


def _dino_layers(parts: Parts, p: Sections) -> Lines:
    dino, got = parts.dino(p.encode.dino), p.encode.dino_layers
    if dino and got > dino.blocks:
        reason = f"0 (all) to {dino.blocks}, the number of blocks of {p.encode.dino}"
        yield _line("encode.dino_layers", reason, got, dino.blocks)


def _stored_layer(parts: Parts, p: Sections) -> Lines:
    """Within the encoder, and for features where the query's own blocks begin."""
    blocks, layer = _kept_blocks(parts, p), p.encode.layer
    k = 0 if p.train.input == "frames" else p.model.query_layers
    if blocks is None:
        return
    if layer > blocks:
        reason = f"0 to {blocks}, the number of blocks that encode.dino_layers keeps"
        yield _line("encode.layer", reason, layer, blocks - k if k <= blocks else blocks)
    elif (
        p.train.input == "features" and k <= blocks != layer + k and not p.model.intermediate_tokens
    ):
        values = [f"model.query_layers: {blocks - layer}", f"encode.layer: {blocks - k}"]
        values += ["model.intermediate_tokens: true"] if k == 0 else []
        yield (
            f"encode.layer, model.query_layers: their sum must be {blocks}, the number of blocks "
            f"that encode.dino_layers keeps, got {layer} + {k}; nearest: {' or '.join(values)}"
        )


def _query_layers(parts: Parts, p: Sections) -> Lines:
    blocks, got = _kept_blocks(parts, p), p.model.query_layers
    if blocks is not None and got > blocks:
        fitting = blocks
        if p.train.input == "features":
            fitting = max(0, blocks - p.encode.layer)
        reason = f"0 (shallow) to {blocks}, the number of blocks that encode.dino_layers keeps"
        yield _line("model.query_layers", reason, got, fitting)


def _llm_layers(parts: Parts, p: Sections) -> Lines:
    blocks, got = parts.blocks(p.model.llm), p.model.llm_layers
    if blocks is not None and got > blocks:
        reason = f"0 (all) to {blocks}, the number of blocks of {p.model.llm}"
        yield _line("model.llm_layers", reason, got, blocks)


def _frame_size(parts: Parts, p: Sections) -> Lines:
    """Whole latents, and at least one patch; one nearest size that fits all parts."""
    size, wanted = p.decode.frame_size, list[tuple[str, Callable[[int], bool]]]()
    if vae := parts.vae(p.encode.vae):
        factor = vae.down_factor
        reason = f"a multiple of {factor}, by which the autoencoder of encode.vae reduces frames"
        wanted.append((reason, lambda size: size > 0 and size % factor == 0))
    if dino := parts.dino(p.encode.dino):
        patch = dino.patch_size
        reason = f">= {patch}, one patch of the encoder of encode.dino"
        wanted.append((reason, lambda size: size >= patch))
    for key, chosen in _chosen_towers(p):
        tower = parts.tower(f"{key}.model", chosen.model)
        if tower and tower.preparation.size is None:
            least = tower.preparation.patch
            wanted.append((f">= {least}, one patch of {key}", partial(le, least)))
    if any(not fits(size) for _, fits in wanted):
        near = (other for step in count() for other in (size + step, size - step))
        nearest = next(other for other in near if all(fits(other) for _, fits in wanted))
        for reason, fits in wanted:
            if not fits(size):
                yield _line("decode.frame_size", reason, size, nearest)


def _pooled_grid(section: str) -> Callable[[Parts, Sections], Lines]:
    """Frames have the patches that a section's `pooled_tokens` are means of."""

    def rule(parts: Parts, p: Sections) -> Lines:
        counts: list[PooledCount] = getattr(p, section).pooled_tokens
        if counts and (dino := parts.dino(p.encode.dino)):
            side, grid = p.decode.frame_size // dino.patch_size, math.isqrt(max(counts))
            if side < grid:
                reason = (
                    f"a grid of {side} x {side}, the patches of a frame of {p.decode.frame_size} px"
                )
                fitting = [count for count in counts if math.isqrt(count) <= side]
                key = f"{section}.pooled_tokens"
                yield _line(key, f"at most {reason}", f"{grid} x {grid}", fitting)

    return rule


def _tokenizer(parts: Parts, p: Sections) -> Lines:
    if p.model.text != "none" and parts.tokenizer(p.model.llm) is False:
        reason = f"none with model.llm: {p.model.llm}, beside which there is no tokenizer"
        yield _line("model.text", reason, p.model.text, "none")


def _chosen_towers(p: Sections) -> list[tuple[str, TowerParams]]:
    """The towers, each with its place in params.yaml."""
    return [(f"uncertainty.towers.{name}", one) for name, one in p.uncertainty.towers.items()]


def _towers(parts: Parts, p: Sections) -> Lines:
    for key, chosen in _chosen_towers(p):
        tower = parts.tower(f"{key}.model", chosen.model)
        if tower:
            yield from _sites(f"{key}.sites", tower, chosen.sites)
        elif f"{key}.model" in parts.unusable:
            yield parts.unusable[f"{key}.model"]


def _sites(key: str, tower: Tower, patterns: list[str]) -> Lines:
    faults = list[str]()
    for tried in (*([pattern] for pattern in patterns), patterns):
        if tried is patterns and faults:
            break  # the same again
        try:
            sites = match_sites(tried, tower.sites, key=key)
        except ParamsError as error:
            faults.append(str(error))
            continue
        for site in sites if tried is patterns else ():
            width = tower.model.get_submodule(site).out_features
            if width % 2:
                faults.append(f"{key}: {site} has {width} outputs, an odd number")
    yield from faults
