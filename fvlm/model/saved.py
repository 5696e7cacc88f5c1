"""Save a foveated model, load it with one call, and share it.

A saved model is a folder of `config.json` and `model.safetensors`, with text also `tokenizer.json`;
nothing else is needed to load it, neither the hub nor the packages that the parts came from. Beside
them may lie a model card, and in `dino/` and `vae/` the encoders that lie nowhere else: they turn
a video file into what the model takes (`video.py`). The config names all parts by content.

Its config holds the hash of the code that saved it and what the model made of a fixed batch. Other
code loads it only when it makes the same of that batch: a model outlives a refactoring, and is
refused where it would mean something else.
"""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fvlm.clips.batch import Captions
from fvlm.clips.tokenizer import AnswerTokenizer, CaptionTokenizer, Chat, read_tokenizer
from fvlm.core.document import Document
from fvlm.core.errors import CheckpointError
from fvlm.core.identity import made_by
from fvlm.core.io import atomic_write, read_json, sha256_file, write_json
from fvlm.model.build import FORMAT, Architecture, model_of
from fvlm.model.foveated import FoveatedModel
from fvlm.model.hub import CARD, CONFIG, PART_FILES, TOKENIZER, WEIGHTS, find_model
from fvlm.model.query_attention import patch_grid

FRAMES, WORDS = 4, 5  # of the fixed batch
SHOWN = 64  # values kept of each pass
TOLERANCE = 1e-3  # of the root mean square; another processor rounds by some 1e-6


class Preprocessing(Document):
    """How a video file becomes frames: spread over it, the displayed centre square, RGB, uint8.

    frame_size: pixels, of height and width; num_frames: of a clip in training. The encoders (see
    `provenance`) take these frames, and their outputs are rounded to float16.
    """

    frame_size: int
    num_frames: int


class ModelConfig(Architecture):
    """`config.json` of a saved model.

    lambda_coarse: weight of the coarse loss in that training; 0 leaves the coarse pass untrained.
    training: the name of the training, a hash of all that decided the weights, "" for weights that
    were changed since; trained_by: hash of the code that trained. made_by: hash of the code that
    loads it; outputs: what it made of the fixed batch, by pass. eos: of a tokenizer; chat: how it
    writes a question and its answer, of a model that answers.
    """

    preprocessing: Preprocessing
    seed: int
    lambda_coarse: float
    training: str
    trained_by: str
    made_by: str
    weights_sha256: str
    outputs: dict[str, list[float]]
    eos: int | None = None
    chat: Chat | None = None


Tokenizer = CaptionTokenizer | AnswerTokenizer


def save_model(
    weights: Mapping[str, Tensor],
    architecture: Architecture,
    folder: Path,
    *,
    preprocessing: Preprocessing,
    seed: int,
    lambda_coarse: float,
    training: str,
    trained_by: str,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a model's `state_dict()` and config, each atomically; the config holds its hash.

    A model with text needs its tokenizer too.
    """
    if tokenizer:
        with atomic_write(folder / TOKENIZER) as file:
            file.write(tokenizer.tokenizer.to_str().encode())
    weights = {name: value.contiguous().cpu() for name, value in weights.items()}
    with atomic_write(folder / WEIGHTS) as file:
        file.write(save(weights, metadata={"format": "pt"}))
    model = model_of(architecture, FoveatedModel)
    model.load_state_dict(weights)
    config = ModelConfig(
        **dict(architecture),
        preprocessing=preprocessing,
        seed=seed,
        lambda_coarse=lambda_coarse,
        training=training,
        trained_by=trained_by,
        made_by=made_by(load_model),
        weights_sha256=sha256_file(folder / WEIGHTS),
        outputs=fixed_outputs(model.eval(), architecture),
        eos=tokenizer.eos if tokenizer else None,
        chat=tokenizer.chat if isinstance(tokenizer, AnswerTokenizer) else None,
    )
    write_json(folder / CONFIG, config.model_dump(mode="json"))


class TrainedModel(
    FoveatedModel,
    PyTorchModelHubMixin,
    library_name="fvlm",
    license="mit",
    pipeline_tag="video-to-video",
    tags=["video", "foveated-vision"],
):
    """A model that was loaded, and so can be saved and shared as it was.

    from_pretrained, save_pretrained and push_to_hub are those of `huggingface_hub`. The card of an
    exported model goes with its weights; where these were changed a short one is written.

    folder: where it came from; beside: by name, files there that `save_model` does not write.
    """

    config: ModelConfig
    folder: Path
    beside: dict[str, Path]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> "TrainedModel":
        """`load_model` with the options of a download; map_location: the model's device."""
        folder = find_model(
            pretrained_model_name_or_path,
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        )
        return _load_folder(folder, **model_kwargs)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What turns text into tokens for it; None for a model without text."""
        return _read_tokenizer(self.folder, self.config)

    def _save_pretrained(self, save_directory: Path) -> None:
        """The files of the model; the mixin adds a card where there is none, and uploads."""
        self._save(save_directory, training=self.config.training)
        changed = read_config(save_directory).weights_sha256 != self.config.weights_sha256
        if changed:
            self._save(save_directory, training="")
        for name, path in self.beside.items():
            target = save_directory / name
            if (changed and name == CARD) or path == target.absolute():
                continue
            with path.open("rb") as source, atomic_write(target) as file:
                shutil.copyfileobj(source, file)

    def _save(self, folder: Path, *, training: str) -> None:
        config = self.config
        save_model(
            self.state_dict(),
            Architecture(**{name: getattr(config, name) for name in Architecture.model_fields}),
            folder,
            preprocessing=config.preprocessing,
            seed=config.seed,
            lambda_coarse=config.lambda_coarse,
            training=training,
            trained_by=config.trained_by,
            tokenizer=self.tokenizer,
        )


def load_model(source: str | Path = Path("models/foveated")) -> TrainedModel:
    """Load a trained model in evaluation mode, float32, on the CPU.

    source: its folder, or text that is the id of a repository of the model hub, owner/name.

    Raises CheckpointError when there is none, or when it holds another format, an incomplete
    config, damaged weights, or a model that means something else to the present code.
    """
    return TrainedModel.from_pretrained(source)


def _load_folder(folder: Path, *, map_location: str = "cpu") -> TrainedModel:
    config = read_config(folder)
    model = model_of(config, TrainedModel)
    _load_weights(model, folder / WEIGHTS, sha256=config.weights_sha256)
    model.eval()
    if config.made_by != made_by(load_model):
        _check_outputs(folder, config.outputs, fixed_outputs(model, config))
    model.config, model.folder = config, folder.absolute()
    beside = {name: model.folder / name for name in (CARD, *PART_FILES)}
    model.beside = {name: path for name, path in beside.items() if path.is_file()}
    return model.to(map_location)


def load_tokenizer_of(source: str | Path = Path("models/foveated")) -> Tokenizer | None:
    """What turns text into tokens for a trained model; None for a model without text.

    source, and what is raised: as of `load_model`.
    """
    folder = find_model(source)
    return _read_tokenizer(folder, read_config(folder))


def load_caption_tokenizer(source: str | Path = Path("models/foveated")) -> CaptionTokenizer | None:
    """As `load_tokenizer_of`, of a model that answers no questions; CheckpointError otherwise."""
    tokenizer = load_tokenizer_of(source)
    if isinstance(tokenizer, AnswerTokenizer):
        raise CheckpointError(f"{source} answers questions: it is judged by `quiz` instead")
    return tokenizer


def _read_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    params = config.model
    if params.text == "none":
        return None
    tokenizer = read_tokenizer(folder / TOKENIZER)
    if config.eos is None:
        raise CheckpointError(f"{folder / CONFIG}: eos is missing")
    if params.text == "answer":
        if config.chat is None:
            raise CheckpointError(f"{folder / CONFIG}: chat is missing")
        return AnswerTokenizer(tokenizer, config.eos, config.chat)
    return CaptionTokenizer(tokenizer, config.eos, params.text, params.max_text_tokens)


def read_config(folder: Path) -> ModelConfig:
    """The config of a saved model; raises CheckpointError for one that is not of this format."""
    document: dict[str, Any] = read_json(folder / CONFIG)
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / CONFIG}: format {document.get('format')}, expected {FORMAT}; "
            "run `dvc repro -f -s train` to make it anew, if it is a model of fVLM at all"
        )
    try:
        return ModelConfig.model_validate(document)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise CheckpointError(f"{folder / CONFIG} is invalid: {'; '.join(faults)}") from None


@torch.inference_mode()
def fixed_outputs(model: FoveatedModel, architecture: Architecture) -> dict[str, list[float]]:
    """What the model makes of one seeded clip of noise: values evenly taken from both passes."""
    noise = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, FRAMES, *architecture.token_shape, generator=noise)
    if model.encoder is not None:
        side = patch_grid(architecture.token_shape[0])[1] * model.encoder.patch_size
        inputs = torch.randint(256, (1, FRAMES, 3, side, side), generator=noise).to(torch.uint8)
    latents = torch.randn(1, FRAMES, *architecture.latent_shape, generator=noise)
    captions = None
    if model.text != "none":
        ids = torch.randint(model.language.config.vocab_size, (1, WORDS), generator=noise)
        mask = torch.ones(1, WORDS, dtype=torch.bool)
        question = Captions(ids.flip(1), mask) if model.text == "answer" else None
        captions = Captions(ids, mask, question=question)
    found = model(inputs, latents, captions)
    outputs = {name: _evenly(getattr(found, name)) for name in ("coarse", "fine")}
    for name in ("caption_coarse", "caption_fine"):
        if (value := getattr(found, name)) is not None:
            outputs[name] = _evenly(value)
    return outputs


def _evenly(values: Tensor) -> list[float]:
    flat = values.float().flatten()
    chosen: list[float] = flat[:: max(1, len(flat) // SHOWN)][:SHOWN].tolist()
    return chosen


def _check_outputs(
    folder: Path, saved: dict[str, list[float]], found: dict[str, list[float]]
) -> None:
    """Raise CheckpointError unless both are the same to TOLERANCE."""
    for name, values in saved.items():
        there, here = torch.tensor(values), torch.tensor(found.get(name, []))
        scale = float(there.square().mean().sqrt())
        different = len(there) != len(here) or float((there - here).abs().max()) > TOLERANCE * scale
        if different or not here.isfinite().all():
            raise CheckpointError(
                f"{folder} was trained by other code, to which its weights mean something else "
                f"(the {name} pass of a fixed batch differs): run `dvc repro -f -s train`, or "
                "go back to the code that trained it"
            )
    print(
        f"{folder} was trained by other code, which makes the same of a fixed batch to "
        f"{TOLERANCE:g}: loaded",
        file=sys.stderr,
    )


def _load_weights(model: FoveatedModel, path: Path, *, sha256: str) -> None:
    try:
        # safetensors notices a file that was cut short, but no changed byte.
        if sha256_file(path) != sha256:
            raise CheckpointError(
                f"{path} is damaged, or not the file that {CONFIG} was saved with"
            )
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot load the weights: {error}") from None
