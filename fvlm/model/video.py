"""The encoders of a saved model: what turns frames of a video file into what the model takes."""

from pathlib import Path

import torch

from fvlm.core.errors import WeightsError
from fvlm.encoders.dino import load_dino
from fvlm.encoders.frames import EncodeParams, FrameEncoder
from fvlm.encoders.vae import load_vae
from fvlm.model.hub import find_model
from fvlm.model.saved import read_config
from fvlm.weights.sources import Provenance

BATCH_FRAMES = 48  # frames in one forward of the encoders


def load_encoders(
    source: str | Path = Path("models/foveated"),
    device: torch.device | str = "cpu",
    *,
    dino: str | None = None,
    vae: str | None = None,
) -> FrameEncoder:
    """The patch encoder and the autoencoder that the model of `source` was trained with.

    They are looked for in the model's own folder, then where they were at its training. dino, vae:
    where they are to be found instead: a folder, a hub id, `package:NAME`. Raises WeightsError when
    one is not at hand or holds other weights, CheckpointError as `load_model`.
    """
    folder = find_model(source)
    found = read_config(folder).provenance
    sources = {
        name: given or (str(folder / name) if (folder / name).is_dir() else part.source)
        for name, part, given in (("dino", found.dino, dino), ("vae", found.vae, vae))
    }
    try:
        encoder, encoder_source = load_dino(sources["dino"], blocks=found.dino.blocks)
        autoencoder, autoencoder_source = load_vae(sources["vae"])
    except WeightsError as error:
        raise WeightsError(
            f"{source} was trained with the encoder {found.dino.source} and the autoencoder "
            f"{found.vae.source}; one is not at hand: give its place (--dino, --vae)\n  {error}"
        ) from None
    _check_same(found.dino.sha256, encoder_source)
    _check_same(found.vae.sha256, autoencoder_source)
    params = EncodeParams(
        dino=sources["dino"],
        vae=sources["vae"],
        dino_layers=found.dino.blocks,
        layer=found.dino.layer,
        batch_frames=BATCH_FRAMES,
        dtype="float32",
        compile=False,
    )
    return FrameEncoder(encoder, autoencoder, params, torch.device(device))


def _check_same(expected: str, found: Provenance) -> None:
    if found.sha256 != expected:
        raise WeightsError(
            f"the model was trained with other weights of {found.source} than those at hand: "
            f"sha256 {expected[:12]} and {found.sha256[:12]}"
        )
