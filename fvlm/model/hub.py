"""Where a saved model lies: a folder, or a repository of the model hub, downloaded once.

Only files of the format of `saved.py` are downloaded, by their names; none of them is code.
"""

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fvlm.core.errors import CheckpointError
from fvlm.weights import sources

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER, CARD = "tokenizer.json", "README.md"
PARTS: tuple[sources.Kind, ...] = ("dino", "vae")  # folders of encoders that lie nowhere else
FILES = (CONFIG, WEIGHTS, TOKENIZER, CARD)
PART_FILES = tuple(f"{part}/{name}" for part in PARTS for name in (CONFIG, *sources.WEIGHTS))


def find_model(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a saved model; of text that names no folder, that of a hub id (owner/name).

    A folder wins over a hub id of the same spelling. The options are those of `snapshot_download`.
    Raises CheckpointError that says why there is none, or what the repository lacks.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    here = f"{source}: no such folder ({folder.absolute()})"
    if isinstance(source, Path) or "/" not in source:
        raise CheckpointError(f"{here}; `dvc repro` trains a model into models/foveated")
    try:
        found = snapshot_download(
            source,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=[*FILES, *PART_FILES],
        )
    except HFValidationError as error:
        raise CheckpointError(f"{here}, and no hub id (owner/name): {error}") from None
    except (OSError, HfHubHTTPError) as error:
        raise CheckpointError(_why_not(source, revision, here, error)) from None
    folder = Path(found)
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{source}: the repository holds no {' and no '.join(missing)}: it is no model that "
            "`fvlm export` or save_pretrained wrote"
        )
    return folder


def _why_not(source: str, revision: str | None, here: str, error: Exception) -> str:
    """What to say of a hub id that cannot be had."""
    causes = (error, error.__cause__)
    for cause in causes:
        if isinstance(cause, GatedRepoError):
            return (
                f"{source}: the model hub has it, for those alone to whom its owner gave access: "
                f"ask for it at {constants.ENDPOINT}/{source}, then run `hf auth login`"
            )
        if isinstance(cause, RevisionNotFoundError):
            return f"{source}: the repository has no revision {revision!r}"
        if isinstance(cause, RepositoryNotFoundError):
            return (
                f"{here}, and the model hub has no such repository, or it is private: check the "
                "name, or run `hf auth login`"
            )
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return f"{source}: the model hub refuses it: {cause}"
    if constants.HF_HUB_OFFLINE:
        return f"{here}, and not in the local cache; HF_HUB_OFFLINE forbids to ask the model hub"
    return f"{here}, not in the local cache, and the model hub cannot be reached: {error}"
