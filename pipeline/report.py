"""Make the report: one page with the verdict, its controls, pictures, and where it came from.

Reads   models/foveated/, data/filter/, data/text/, data/decode/, data/encode/,
        data/evaluation.json, metrics/*.json, plots/*.csv, all of params.yaml
Writes  reports/index.html, reports/figures.csv, reports/pictures/, reports/model_card.md; sends
        figures and these files, without the pictures, to the MLflow run of the training
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fvlm.clips.order import evaluated_frames
from fvlm.clips.reader import ClipReader, Indices, open_clips
from fvlm.clips.text import CaptionTable
from fvlm.core.device import default_device
from fvlm.core.document import flatten, read_document, read_table
from fvlm.core.errors import ShardError
from fvlm.core.io import atomic_write, hash_json, read_csv, read_json, write_csv
from fvlm.core.params import Params, load_params
from fvlm.core.progress import Progress
from fvlm.core.provenance import commit_date, git_commit, package_versions
from fvlm.core.rows import Rows
from fvlm.core.stage import run
from fvlm.encoders.vae import load_vae
from fvlm.model.foveated import FoveatedModel
from fvlm.model.hub import CONFIG
from fvlm.model.saved import load_caption_tokenizer, load_model
from fvlm.report.accounts import CutVideo
from fvlm.report.card import render_card
from fvlm.report.choice import Chosen, ReportParams, choose_clips, describe_choice
from fvlm.report.cost import clip_flops, count_parameters
from fvlm.report.figures import figure_rows
from fvlm.report.gallery import picture_clip
from fvlm.report.page import LISTED, PicturedClip, Report, render_page
from fvlm.report.view import view_clip
from fvlm.shards.manifest import EncodedManifest, FrameManifest, Manifest, read_manifest
from fvlm.shards.read import open_shards
from fvlm.statistics.evaluation import ClipRow, Evaluation, FrameRow, MotionRow
from fvlm.tracking.tracker import TRAINED_WEIGHTS, send_results
from fvlm.video.clips import DecodeParams, asked_span, plan_clips
from pipeline.paths import (
    BY_CLIP,
    BY_FRAME,
    BY_MOTION,
    CAPTIONS,
    CARD,
    CURVES,
    DECODE_METRICS,
    ENCODED,
    EVALUATION,
    FIGURES,
    FILTER_METRICS,
    FRAMES,
    MANIFEST,
    MODEL,
    PAGE,
    PICTURES,
    POOLED,
    TRAIN_METRICS,
    VALIDATION,
)

Section = dict[str, Any]


class Sections(Params):
    """What this stage reads of params.yaml: everything, to show it; other stages check theirs."""

    collect: Section
    filter: Section
    decode: Section
    encode: Section
    model: Section
    train: Section
    evaluate: Section
    report: ReportParams


def main() -> None:
    """Picture the best and the worst clips and write the page."""
    sections, config = load_params(Sections), read_json(MODEL / CONFIG)
    evaluation, rows = read_document(Evaluation, EVALUATION), read_table(ClipRow, BY_CLIP)
    chosen = choose_clips(rows, sections.report.clips)
    shutil.rmtree(PICTURES, ignore_errors=True)
    model = load_model(MODEL)
    reader = open_held_out(model)
    kept = evaluated_frames(stored=reader.stored, count=sections.evaluate["num_frames"])
    decoded = read_json(DECODE_METRICS)
    report = Report(
        dataset=describe_source(str(sections.collect["source"]), decoded["videos"]),
        date=commit_date(Path()),
        figures=FIGURES.name,
        evaluation=evaluation,
        training=read_json(TRAIN_METRICS),
        filtering=read_json(FILTER_METRICS),
        decoding=decoded,
        curves=read_csv(CURVES),
        validation=read_csv(VALIDATION),
        frames=read_table(FrameRow, BY_FRAME),
        motion=read_table(MotionRow, BY_MOTION),
        by_clip=rows,
        clips=picture_clips(chosen, model, reader, kept),
        shown=describe_choice(chosen, len(rows)),
        tokens=config["token_shape"][0],
        parameters=count_parameters(model),
        flops=clip_flops(model, reader.read([0], kept)),
        clip_frames=len(kept),
        cut=list(islice(cut_videos(DecodeParams(**sections.decode)), LISTED)),
        unused=unused_videos(),
        params=sections.model_dump(),
        provenance=provenance(config),
        versions=package_versions(),
        pooled_flops={
            f"pooled_{folder.name}": clip_flops(load_model(folder), reader.read([0], kept))
            for folder in sorted(POOLED.glob("*"), key=lambda folder: int(folder.name))
        },
    )
    card = render_card(
        config,
        evaluation=evaluation,
        training=report.training,
        commit=report.provenance["git commit"],
        versions=report.versions,
        license="mit",
        datasets=[Path(sections.collect["source"]).stem],
    )
    for path, text in {PAGE: render_page(report), CARD: card}.items():
        with atomic_write(path) as file:
            # File names need not be UTF-8.
            file.write(text.encode(errors="replace"))
    write_csv(FIGURES, figure_rows(report))
    texts = {f"evaluate.{key}": str(value) for key, value in sections.evaluate.items()}
    texts |= {"git_commit": report.provenance["git commit"]}
    found = flatten(evaluation)
    found[TRAINED_WEIGHTS] = found.pop("weights")
    seed = f"seed {config['seed']}"
    # Steps that the training could not send in time go out now.
    steps = [{name: float(value) for name, value in row.items() if value} for row in report.curves]
    files = [PAGE, FIGURES, CARD]
    send_results(config["training"], found | texts, files, title=seed, history=steps)


def open_held_out(model: FoveatedModel) -> ClipReader:
    """The held-out clips as the model takes them."""
    tokenizer = load_caption_tokenizer(MODEL)
    return open_clips(
        ENCODED,
        FRAMES,
        split="val",
        input=model.input,
        tokenizer=tokenizer,
        captions=CAPTIONS,
    )


def picture_clips(
    chosen: list[Chosen], model: FoveatedModel, reader: ClipReader, kept: Indices
) -> list[PicturedClip]:
    """Run the model over the chosen clips, with the frames that were evaluated."""
    device, manifest = default_device(), read_manifest(ENCODED, EncodedManifest)
    model = model.to(device)
    vae, source = load_vae(manifest.vae.source)
    if source.sha256 != manifest.vae.sha256:
        raise ShardError(
            f"{ENCODED} was made with other weights of {source.source} than those at hand; "
            "run `dvc repro -f -s encode`"
        )
    vae.to(device)
    decoded = open_shards(FRAMES, split="val")
    captions = CaptionTable(CAPTIONS, decoded.keys)
    pictured = []
    with Progress("report", total=len(chosen), unit="clip") as progress:
        for clip in chosen:
            place = decoded.keys.index(clip.key)
            facts = decoded.metadata(place)
            view = view_clip(
                model,
                vae,
                frames=decoded.read([place], fields=("frames",), frames=kept)["frames"][0],
                batch=reader.read([reader.keys.index(clip.key)], kept).to(device),
                seconds=[facts["pts_seconds"][t] for t in kept],
            )
            span = f"{facts['start']:.1f} to {facts['end']:.1f} s"
            names = {
                "video_id": f"{facts['video_id']}, {span}",
                "caption": captions[place],
            }
            pictured.append(picture_clip(view, clip, folder=PICTURES, **names))
            progress.advance()
    return pictured


def describe_source(source: str, videos: int) -> str:
    """Where the videos are from; the demo's are no videos that know nothing of each other."""
    return f"{source}, {videos} scenes of one film" if source == "demo" else source


def cut_videos(params: DecodeParams) -> Iterator[CutVideo]:
    """What was cut out of every accepted video."""
    failed = Counter[str]()
    for note in read_manifest(FRAMES, FrameManifest).quarantined:
        failed[note.video_id] += note.clips
    for row in Rows(MANIFEST, holding='"accepted"'):
        if row["status"] == "accepted":
            plan, name = plan_clips(row, params), row["video_id"]
            start, end = asked_span(row, row["duration_seconds"])
            yield CutVideo(
                video_id=name,
                split=row["split"],
                start=start,
                end=end,
                cuts=None if row["cuts"] is None else len(row["cuts"]),
                clips=len(plan.clips) - failed[name],
                candidates=plan.candidates,
                with_cuts=plan.with_cuts,
                failed=failed[name],
            )


def unused_videos() -> list[dict[str, Any]]:
    """Videos that were filtered out or quarantined by any stage, with the reason."""
    unused = [row for row in Rows(MANIFEST) if row["status"] != "accepted"]
    for folder in (FRAMES, ENCODED):
        for note in read_manifest(folder, Manifest).quarantined:
            told = note.model_dump(include={"video_id", "reason", "message"})
            unused.append(told | {"status": f"quarantined while making {folder}"})
    return unused


def provenance(config: dict[str, Any]) -> dict[str, str]:
    """The commit, and hashes of data and weights; the same for the same checkout."""
    found = {
        "git commit": git_commit(Path()),
        "encoded data (hash of its manifest)": hash_json(
            read_manifest(ENCODED, EncodedManifest).model_dump()
        ),
        "trained weights (sha256)": config["weights_sha256"],
    }
    for name, source in config["provenance"].items():
        origin = " ".join(filter(None, (source["source"], source["revision"])))
        found[f"{name} weights"] = f"{origin}, sha256 {source['sha256']}"
    return found


if __name__ == "__main__":
    run(main)
