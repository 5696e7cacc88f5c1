"""What the pretrained parts say of themselves in their small files; no weight of them is read.

The components' own classes are asked, with tensors that have shapes and no memory; not those of the
autoencoder, whose library takes seconds to import.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from transformers import LlamaConfig

from fvlm.core.errors import WeightsError
from fvlm.encoders.dino import DinoEncoder
from fvlm.encoders.vae import LatentGrid, check_config
from fvlm.uncertainty.pixels import Preparation
from fvlm.uncertainty.tower import Tower, frame_size_of, tower_class
from fvlm.weights.resolve import PACKAGE, has_tokenizer, local_folder, read_config
from fvlm.weights.sources import CONFIG, TOKENIZERS, Kind, NotAtHandError

UNTRAINED = "untrained:"
Part = TypeVar("Part")


class Parts:
    """Pretrained parts, each looked up once; None for one that cannot be had.

    not_at_hand: by key of params.yaml, why a part could not be looked up now. unusable: by key, the
    fault of a source. read: the files looked at, and packages as `package:NAME`.
    """

    def __init__(self) -> None:
        self.not_at_hand: dict[str, str] = {}
        self.unusable: dict[str, str] = {}
        self.read: set[str] = set()
        self._known: dict[tuple[str, str], Any] = {}

    def dino(self, source: str) -> DinoEncoder | None:
        """The patch encoder of `encode.dino`, with all of its blocks."""
        return self._outline("encode.dino", source, "dino", DinoEncoder.from_config)

    def vae(self, source: str) -> LatentGrid | None:
        """What the autoencoder of `encode.vae` makes of frames."""

        def outline(config: dict[str, Any]) -> LatentGrid:
            return LatentGrid.of(check_config(source, config), config)

        return self._outline("encode.vae", source, "vae", outline)

    def tower(self, key: str, source: str) -> Tower | None:
        """A vision tower of `uncertainty.towers`; key: its place in params.yaml."""

        def outline(config: dict[str, Any]) -> Tower:
            model_class = tower_class(source, config)
            own = model_class.config_class.from_dict(config.get("vision_config", config))
            model = model_class(own)
            pixels = Preparation((), (), frame_size_of(model), own.patch_size, mode="")
            return Tower(model, pixels, config_sha256="")

        return self._outline(key, source, "tower", outline)

    def blocks(self, source: str) -> int | None:
        """How many blocks the language model of `model.llm` has; None also without training."""

        def outline(config: dict[str, Any]) -> int:
            if config["model_type"] != LlamaConfig.model_type or config.get("attention_dropout"):
                raise WeightsError("must be of model type llama, without attention_dropout")
            return int(LlamaConfig.from_dict(config).num_hidden_layers)

        if source.startswith(UNTRAINED):
            return None
        return self._outline("model.llm", source, "language", outline)

    def tokenizer(self, source: str) -> bool | None:
        """Whether a tokenizer lies beside the language model; None when that is not known."""
        if self.blocks(source) is None:
            return None
        return self._once("model.llm tokenizer", source, lambda: has_tokenizer(source))

    def _outline(
        self, key: str, source: str, kind: Kind, outline: Callable[[dict[str, Any]], Part]
    ) -> Part | None:
        def build() -> Part:
            config = read_config(source, kind=kind)
            with torch.device("meta"):
                return outline(config)

        if source.startswith(PACKAGE):
            self.read.add(source)
        elif folder := local_folder(source):
            names = (CONFIG, *TOKENIZERS) if kind == "language" else (CONFIG,)
            self.read |= {str(folder / name) for name in names}
        return self._once(key, source, build)

    def _once(self, key: str, source: str, build: Callable[[], Part]) -> Part | None:
        if (key, source) not in self._known:
            self._known[key, source] = None
            try:
                self._known[key, source] = build()
            except NotAtHandError as error:
                self.not_at_hand[key] = f"{key}: {source} is not at hand: {error}"
            except WeightsError as error:
                own, _, problem = str(error).partition(f": {source}: ")
                self.unusable[key] = f"{key}: {source}: {problem or own}"
            except Exception as error:  # of the libraries, for a config.json of another kind
                self.unusable[key] = f"{key}: {source}: {CONFIG} fits no such model: {error!r}"
        part: Part | None = self._known[key, source]
        return part
