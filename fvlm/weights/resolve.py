"""Find pretrained weights: a hub id, a local folder, or `package:NAME` become one local folder.

Every loader then reads that folder without a network, and records the `Provenance` of what it read.
"""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from fvlm.core.errors import FvlmError, WeightsError
from fvlm.core.io import hash_json, project_root, read_json, sha256_file
from fvlm.weights.sources import (
    BESIDE,
    CONFIG,
    TOKENIZERS,
    WEIGHTS,
    Kind,
    NotAtHandError,
    Provenance,
    Resolved,
    unusable,
)

PACKAGE, HUB_SECONDS = "package:", 10.0
_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")


def resolve(source: str, *, kind: Kind) -> Resolved:
    """The local folder of `source`: `package:NAME`, a folder, or a hub id (`org/name[@revision]`).

    A folder wins over a hub id of the same spelling; relative ones are looked up in the working
    directory, then in the project's root. Raises WeightsError, naming the key of params.yaml and
    its alternatives, when the source cannot be had or holds no safetensors weights.
    """
    folder, revision = _locate(source, kind)
    return Resolved(folder, Provenance(source, revision, _hash_weights(folder, source, kind)))


def is_at_hand(source: str) -> bool:
    """Whether weights of a hub id lie in the local cache."""
    match = _HUB_ID.fullmatch(source)
    names = (name for name in WEIGHTS if "*" not in name)
    return match is not None and any(
        isinstance(try_to_load_from_cache(match["repo"], name, revision=match["revision"]), str)
        for name in names
    )


def read_config(source: str, *, kind: Kind) -> dict[str, Any]:
    """The `config.json` of `source` without its weights; of a package the part known beforehand.

    Of a hub id only this one file is downloaded. Raises WeightsError as `resolve` does, as far as
    it can tell without the weights; NotAtHandError, one of them, for a package that is not
    installed and for a hub id that is not in the local cache while the hub cannot be reached.
    """
    if source.startswith(PACKAGE):
        from fvlm.weights.packages import installed_file, known_package

        name = source.removeprefix(PACKAGE)
        try:
            package = known_package(name, kind=kind)
        except WeightsError as error:
            raise unusable(source, kind, str(error)) from None
        try:
            installed_file(name, package)
        except WeightsError as error:
            raise NotAtHandError(str(error)) from None
        return package.config
    path = small_file(source, CONFIG, kind=kind)
    if path is None:
        raise unusable(source, kind, f"it holds no {CONFIG}")
    try:
        config: dict[str, Any] = read_json(path)
    except FvlmError as error:
        raise unusable(source, kind, str(error)) from None
    return config


def has_tokenizer(source: str) -> bool:
    """Whether a tokenizer lies beside a language model; raises as `read_config` does."""
    if source.startswith(PACKAGE):
        return True
    return any(small_file(source, name, kind="language") for name in TOKENIZERS)


def small_file(source: str, name: str, *, kind: Kind) -> Path | None:
    """A file of a folder or of a hub id, downloaded alone; None where it has no such file."""
    if folder := local_folder(source):
        _weight_files(folder, source, kind)
        return folder / name if (folder / name).is_file() else None
    match = _HUB_ID.fullmatch(source)
    if match is None:
        raise unusable(source, kind, _no_folder(source))
    repo, revision = match["repo"], match["revision"]
    try:
        cached = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        # Asked first, since a download without a network is tried again for 20 seconds.
        get_hf_file_metadata(hf_hub_url(repo, name, revision=revision), timeout=HUB_SECONDS)
        return Path(hf_hub_download(repo, name, revision=revision))
    except HFValidationError as error:
        raise unusable(source, kind, f"neither a folder here nor a hub id: {error}") from None
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise unusable(source, kind, f"the model hub refuses it: {error}") from None
    except Exception as error:  # whatever the HTTP library raises without a network
        raise NotAtHandError(
            "no such folder here, not in the local cache, and the model hub cannot be reached "
            f"({error})"
        ) from None


def _no_folder(source: str) -> str:
    return f"no such folder ({Path(source).expanduser().absolute()})"


def local_folder(source: str) -> Path | None:
    """The folder that a source names: in the working directory, or in the project's root."""
    for base in (Path(), project_root()):
        if (folder := base / Path(source).expanduser()).is_dir():
            return folder.resolve()
    return None


def hub_snapshot(source: str) -> str:
    """The commit of a hub id that the local cache holds; why there is none, otherwise."""
    match = _HUB_ID.fullmatch(source)
    if match is None:
        return "no hub id"
    cached = try_to_load_from_cache(match["repo"], CONFIG, revision=match["revision"])
    return Path(cached).parent.name if isinstance(cached, str) else "not in the local cache"


def _locate(source: str, kind: Kind) -> tuple[Path, str]:
    """Folder and revision."""
    if source.startswith(PACKAGE):
        # The converters need onnx and gguf, which a run from a folder or the hub does not.
        from fvlm.weights.packages import package_folder

        try:
            return package_folder(source.removeprefix(PACKAGE), kind=kind)
        except WeightsError as error:
            raise unusable(source, kind, str(error)) from None
    if folder := local_folder(source):
        return folder, ""
    if match := _HUB_ID.fullmatch(source):
        return _download(source, match["repo"], match["revision"], kind)
    raise unusable(source, kind, _no_folder(source))


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
    names = _weight_files(folder, source, kind)
    hashes = {name: sha256_file(folder / name) for name in names}
    return hashes[names[0]] if len(names) == 1 else hash_json(hashes)


def _weight_files(folder: Path, source: str, kind: Kind) -> list[str]:
    """Names of the safetensors files; WeightsError when there are none, or no config.json."""
    names = sorted(path.name for pattern in WEIGHTS[:2] for path in folder.glob(pattern))
    names += [path.name for path in folder.glob(WEIGHTS[3])]
    if not names or not (folder / CONFIG).is_file():
        missing = "safetensors weights" if not names else CONFIG
        raise unusable(source, kind, f"{folder} holds no {missing}")
    return names
