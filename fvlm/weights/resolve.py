"""Find pretrained weights: a hub id, a local folder, or `package:NAME` become one local folder.

Every loader then reads that folder without a network, and records the `Provenance` of what it read.
"""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from fvlm.core.errors import WeightsError
from fvlm.core.io import hash_json, project_root, sha256_file
from fvlm.weights.sources import BESIDE, CONFIG, WEIGHTS, Kind, Provenance, Resolved, unusable

_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")


def resolve(source: str, *, kind: Kind) -> Resolved:
    """The local folder of `source`: `package:NAME`, a folder, or a hub id (`org/name[@revision]`).

    A folder wins over a hub id of the same spelling; relative ones are looked up in the working
    directory, then in the project's root. Raises WeightsError, naming the key of params.yaml and
    its alternatives, when the source cannot be had or holds no safetensors weights.
    """
    folder, revision = _locate(source, kind)
    return Resolved(folder, Provenance(source, revision, _hash_weights(folder, source, kind)))


def _locate(source: str, kind: Kind) -> tuple[Path, str]:
    """Folder and revision."""
    if source.startswith("package:"):
        # The converters need onnx and gguf, which a run from a folder or the hub does not.
        from fvlm.weights.packages import package_folder

        try:
            return package_folder(source.removeprefix("package:"), kind=kind)
        except WeightsError as error:
            raise unusable(source, kind, str(error)) from None
    for base in (Path(), project_root()):
        if (folder := base / Path(source).expanduser()).is_dir():
            return folder.resolve(), ""
    if match := _HUB_ID.fullmatch(source):
        return _download(source, match["repo"], match["revision"], kind)
    raise unusable(source, kind, f"no such folder ({Path(source).expanduser().absolute()})")


def _download(source: str, repo: str, revision: str | None, kind: Kind) -> tuple[Path, str]:
    """The snapshot of a hub repository; only configuration, safetensors and tokenizer files."""
    wanted = [CONFIG, *WEIGHTS, *BESIDE.get(kind, ())]
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except HFValidationError as error:
        raise unusable(source, kind, f"neither a folder here nor a hub id: {error}") from None
    except HfHubHTTPError as error:
        raise unusable(source, kind, f"the model hub refuses it: {error}") from None
    except OSError as error:
        problem = (
            f"no such folder here ({Path(source).absolute()}), and as a hub id it is neither in "
            f"the local cache nor can it be downloaded: {error}"
        )
        raise unusable(source, kind, problem) from None
    return folder, folder.name


def _hash_weights(folder: Path, source: str, kind: Kind) -> str:
    names = sorted(path.name for pattern in WEIGHTS[:2] for path in folder.glob(pattern))
    names += [path.name for path in folder.glob(WEIGHTS[3])]
    if not names or not (folder / CONFIG).is_file():
        missing = "safetensors weights" if not names else CONFIG
        raise unusable(source, kind, f"{folder} holds no {missing}")
    hashes = {name: sha256_file(folder / name) for name in names}
    return hashes[names[0]] if len(names) == 1 else hash_json(hashes)
