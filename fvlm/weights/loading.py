"""Load a transformers model from a resolved folder: complete, safetensors only, without chatter."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.utils import logging

from fvlm.weights.sources import Kind, Resolved, unusable

# What transformers, diffusers and safetensors raise for damaged, misfitting or invalid files.
LOAD_ERRORS = (OSError, TypeError, ValueError, RuntimeError, SafetensorError)


@contextmanager
def quiet() -> Iterator[None]:
    """Errors only, no progress bars, inside the block; the caller checks what was loaded."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_pretrained(
    model_class: Any, resolved: Resolved, *, kind: Kind, config: PreTrainedConfig | None = None
) -> Any:
    """A model of this transformers class, float32, in evaluation mode.

    `config` replaces the folder's own; weights that it has no place for are not read. Raises
    WeightsError when weights are damaged, missing or do not fit.
    """
    source = resolved.provenance.source
    try:
        with quiet():
            model, report = model_class.from_pretrained(
                resolved.folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except LOAD_ERRORS as error:
        raise unusable(source, kind, f"cannot be loaded: {error}") from None
    check_complete(report, source, kind)
    return model.eval()


def check_complete(report: dict[str, Any], source: str, kind: Kind) -> None:
    """Refuse a model of which some weights were not in the file: they would stay random."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise unusable(source, kind, f"{len(missing)} weights are missing: {missing[0]}, ...")
