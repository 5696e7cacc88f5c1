"""What a training starts from: the weights of a saved model (`train.start`), or AR(1)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvlm.clips.latents import fit_ar1
from fvlm.core.errors import CheckpointError, FvlmError
from fvlm.model.build import Architecture
from fvlm.model.film_head import ResidualHead
from fvlm.model.foveated import FoveatedModel
from fvlm.model.hub import CONFIG
from fvlm.model.saved import Tokenizer, load_model, load_tokenizer_of, read_config
from fvlm.training.checkpoint import differences
from fvlm.weights.resolve import local_folder

# Of the parameters of a model: those that no weight is trained for.
FREE = {"llm", "llm_layers", "fine_iterations", "max_text_tokens", "text"}
# Weights that read and say words: of a model without text the pretrained ones stay.
WORDS = {"language.embed_tokens.weight", "output.weight"}
WORDLESS = {"vocab_size", "tie_word_embeddings"}  # of the language model, where it has no text


def find_start(start: str) -> Path:
    """The folder of a saved model; a relative one lies in the working directory or the project.

    Raises CheckpointError when there is none.
    """
    folder = local_folder(start)
    if folder is None or not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{start}: "
            + (f"{folder} holds no {CONFIG}" if folder else "no such folder")
            + "; it must be the folder of a saved model: one that `fvlm export` wrote, or a copy of"
            " models/foveated, whose own files are deleted before a training"
        )
    return folder


def hash_start(start: str) -> str:
    """Hex sha256 of the weights that the training starts from; "" for pretrained parts alone."""
    return read_config(find_start(start)).weights_sha256 if start else ""


def load_start(
    start: str,
    model: FoveatedModel,
    architecture: Architecture,
    tokenizer: Tokenizer | None,
) -> None:
    """Give `model` the weights of a saved one; one without text may start one that has some.

    Raises CheckpointError where that has another architecture, other encoders or another tokenizer,
    naming what differs, or cannot be loaded.
    """
    folder = find_start(start)
    saved = read_config(folder)
    there, here = _decides(saved, load_tokenizer_of(folder)), _decides(architecture, tokenizer)
    answers = architecture.model.text == "answer"
    new = WORDS if answers and saved.model.text == "none" else set()
    for found, text in ((there, saved.model.text), (here, architecture.model.text)):
        if new:
            del found["tokenizer"]
            found["language"] = {k: v for k, v in found["language"].items() if k not in WORDLESS}
        elif not answers:
            found["text"] = text
    if different := differences(there, here):
        raise CheckpointError(
            f"{start} is another model: {', '.join(different)}; set these parameters "
            "as they were there, or start from a model that has them"
        )
    try:
        weights = {name: value for name, value in model.state_dict().items() if name in new}
        model.load_state_dict(weights | load_model(folder).state_dict())
    except (FvlmError, RuntimeError) as error:
        raise CheckpointError(f"{start}: {error}") from None


def start_as_ar1(model: FoveatedModel, latents: Iterable[Tensor]) -> None:
    """Let a residual head begin as AR(1) of latents [B,T,C,h,w] of training clips.

    Its mean and gain, and the latent that stands before the first frame. No random number is drawn.
    """
    head = model.head
    if isinstance(head, ResidualHead):
        mean, gain = fit_ar1(latents)
        with torch.no_grad():
            head.gain.fill_(gain)
            for latent in (head.mean, model.y_init):
                latent.copy_(mean)


def _decides(architecture: Architecture, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What must be the same for weights to mean the same; whether fine passes are run does not."""
    found = architecture.model_dump(
        mode="json",
        include={"input", "model", "language", "encoder", "token_shape", "latent_shape"},
    )
    found["model"] = {key: value for key, value in found["model"].items() if key not in FREE}
    for name in ("dino", "vae"):
        part = getattr(architecture.provenance, name).model_dump()
        found[name] = {key: part[key] for key in part if key not in ("source", "revision")}
    return found | {"tokenizer": tokenizer.tokenizer.to_str() if tokenizer else None}
