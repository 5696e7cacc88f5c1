"""Say that an edit changes no result: `fvlm same STAGE` makes a sample again.

After an edit of the code, or an upgrade of a library, a stage makes its work anew. This command
makes a sample of the stage's present output with the present code: 20 shards (decode, encode), 20
probed videos (filter), the first 20 steps (train; of instruct and prefer, too). When all bytes are
equal it writes a line into same.jsonl, and what was made before is handed back again. Commit that
file with the edit.
"""

import subprocess
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fvlm.core.errors import FvlmError
from fvlm.core.identity import JOINS, current
from fvlm.core.io import hash_json, read_jsonl, write_jsonl
from fvlm.core.params import Params, load_params
from fvlm.core.progress import Progress
from fvlm.core.rows import Rows
from fvlm.core.stage import new_parser
from fvlm.shards.build import Make, ShardPlan
from fvlm.shards.manifest import EncodedManifest, FrameManifest, Manifest, read_manifest
from fvlm.shards.write import write_shard
from pipeline.paths import ENCODED, FRAMES, MANIFEST, MODEL, VIDEOS

SAMPLE = 20  # shards, videos, steps
Shown = tuple[str, str, str]  # old hash, new hash, evidence


def command_line() -> ArgumentParser:
    """What the command is given."""
    parser = new_parser(__doc__, "fvlm same")
    parser.add_argument("stage", choices=sorted(_SHOW))
    parser.add_argument(
        "--trust", action="store_true", help="join without a comparison; the line says so"
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Compare, and join the two hashes when the bytes are equal."""
    chosen = command_line().parse_args(arguments)
    old, new, evidence = _SHOW[chosen.stage](chosen.trust)
    if old == new:
        print(f"{chosen.stage}: what is there was made by this very code")
        return
    join(chosen.stage, old, new, evidence)
    print(f"{chosen.stage}: {evidence}; commit {JOINS.name}")


def join(stage: str, old: str, new: str, evidence: str) -> None:
    """Append a line to same.jsonl."""
    rows = read_jsonl(JOINS) if JOINS.exists() else []
    who = " ".join(_git("config", name) for name in ("user.name", "user.email"))
    commit = _git("rev-parse", "HEAD")
    row = {"stage": stage, "old": old, "new": new, "who": who, "commit": commit}
    write_jsonl(JOINS, [*rows, row | {"evidence": evidence}])


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(JOINS.parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _filter(trust: bool) -> Shown:
    """Videos of the last record of facts whose files are untouched."""
    from fvlm.video.facts import FactRecord, probe_all, probe_folder, probe_version, stat_key

    new = probe_version()
    records = sorted(
        (path for path in probe_folder().glob("*.jsonl") if path.stem != new),
        key=lambda path: path.stat().st_mtime_ns,
    )
    if not records:
        return new, new, ""
    old = records[-1].stem
    if trust:
        return old, new, "trusted"
    before, paths = FactRecord(records[-1]), sorted(row["path"] for row in Rows(VIDEOS))
    stats = {path: stat_key(path) for path in _spread(paths)}
    found = {path: before.get(path, stat) for path, stat in stats.items() if isinstance(stat, list)}
    known = {path: facts for path, facts in found.items() if facts}
    videos = [{"path": path} for path in known]
    with tempfile.TemporaryDirectory() as folder:
        record = FactRecord(Path(folder, "facts.jsonl"))
        again = {video["path"]: facts for video, facts in probe_all(videos, record)}
    different = [path for path, facts in again.items() if repr(facts) != repr(known[path])]
    return old, new, _evidence(len(again), "videos probed again", different)


def _decode(trust: bool) -> Shown:
    """Shards of frames, spread over codecs and containers."""
    from fvlm.video.clips import DecodeParams
    from fvlm.video.decode import decode_request
    from fvlm.video.shards import AcceptedVideos, Decoding, describe_frames, plan_frames

    class Sections(Params):
        decode: DecodeParams

    params, made = load_params(Sections).decode, read_manifest(FRAMES, FrameManifest)
    new = current(decode_request, write_shard)
    if trust or made.made_by == new:
        return made.made_by, new, "trusted"
    videos = AcceptedVideos(MANIFEST, params)
    header = describe_frames(params).model_copy(update={"made_by": made.made_by})

    def kind(plan: ShardPlan) -> str:
        found = [videos[member.key][0] for member in plan.members]
        return hash_json(sorted({f"{row['codec']} {row['container']}" for row in found}))

    plans = sorted(plan_frames(videos, header, params), key=kind)
    with (
        Progress("decode", total=0, unit="clip", silent=True) as progress,
        Decoding(videos, params, progress) as decoding,
    ):
        return made.made_by, new, _remake(made, plans, decoding.make)


def _encode(trust: bool) -> Shown:
    """Shards of tokens and latents."""
    from fvlm.core.device import default_device
    from fvlm.encoders.frames import EncodeParams, load_encoder
    from fvlm.encoders.shards import Encoding, describe_encoding, encode_clips

    class Sections(Params):
        encode: EncodeParams

    params, made = load_params(Sections).encode, read_manifest(ENCODED, EncodedManifest)
    new = current(encode_clips, write_shard)
    if trust or made.made_by == new:
        return made.made_by, new, "trusted"
    encoder, sources = load_encoder(params, default_device())
    frames = read_manifest(FRAMES, FrameManifest)
    header = describe_encoding(frames, params, encoder, sources)
    header = header.model_copy(update={"made_by": made.made_by})
    with encoder.ahead() as ahead:
        encoding = Encoding(FRAMES, frames, header, encoder, ahead)
        return made.made_by, new, _remake(made, encoding.plans, encoding.make)


def _remake(made: Manifest, plans: Iterable[ShardPlan], make: Make) -> str:
    """Make shards of `made` again, in a temporary folder, and compare their bytes."""
    entries = {entry.fingerprint: entry for entry in made.shards}
    known = [plan for plan in plans if plan.fingerprint in entries]
    if not known:
        raise FvlmError(
            "the shards at hand were made with other parameters, videos or weights: set them as "
            "they were, or let the stage run"
        )
    different = []
    with tempfile.TemporaryDirectory() as folder:
        for plan in _spread(known):
            facts = make(plan, Path(folder, "shard.tar")).facts
            entry = entries[plan.fingerprint]
            if facts is None or facts.sha256 != entry.sha256:
                different.append(entry.name)
    return _evidence(min(SAMPLE, len(known)), f"of {len(entries)} shards made again", different)


def _train(trust: bool) -> Shown:
    """The first steps of the first seed's training, in each stage that trains."""
    from fvlm.core.device import default_device
    from fvlm.model.hub import CONFIG
    from fvlm.model.saved import read_config
    from fvlm.training.finished import CURVE, read_curve
    from fvlm.training.trainings import first_steps, run_training
    from pipeline import instruct, prefer, train

    new, old = current(run_training), read_config(MODEL).trained_by
    if trust or old == new:
        return old, new, "trusted"
    count, different = 0, list[str]()
    for stage in (train, instruct, prefer):
        (planned, *_) = stage.list_trainings(load_params(stage.Sections))
        if not (planned.folder / CONFIG).is_file():
            continue
        config = read_config(planned.folder)
        if config.trained_by != old:  # it is not handed back now, and will not be
            continue
        params = planned.params.model_copy(update={"seeds": [config.seed]})
        training, before = replace(planned, params=params), read_curve(planned.folder / CURVE)
        steps = min(SAMPLE, len(before))
        again = first_steps(training, stage.SHARDS, device=default_device(), steps=steps)
        names = [name for name in before[0] if name.startswith("loss")]
        different += [
            f"step {number} of {training.title}"
            for number, (row, found) in enumerate(zip(before, again, strict=False))
            if any(row[name] != found[name] for name in names)
        ]
        count += len(again)
    return old, new, _evidence(count, "steps trained again", different)


def _spread(items: Sequence[Any]) -> list[Any]:
    """SAMPLE of the items, evenly."""
    count = min(SAMPLE, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _evidence(count: int, what: str, different: Sequence[str]) -> str:
    if different:
        raise FvlmError(
            f"{len(different)} of {count} differ, such as {different[0]}: this edit changes results"
        )
    return f"{count} {what}: equal bytes"


_SHOW: dict[str, Callable[[bool], Shown]] = {
    "filter": _filter,
    "decode": _decode,
    "encode": _encode,
    "train": _train,
}
