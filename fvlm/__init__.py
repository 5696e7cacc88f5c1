"""Does a vision-language model see better when the language model itself decides where to look?

What notebooks and scripts need; nothing is imported before it is used.

    load_model      a trained model, from its folder or the model hub
    load_encoders   the encoders of a trained model, for frames of a video
    open_clips      clips of a split as the model takes them, from shards
    open_shards     the arrays and metadata of a split, from shards
    inspect_clips   what every pass saw and predicted: latents, visual tokens, attention
    decode_video    frames of a video, exactly as the pipeline decodes them
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fvlm.clips.reader import open_clips
    from fvlm.model.inspect import inspect_clips
    from fvlm.model.saved import load_model
    from fvlm.model.video import load_encoders
    from fvlm.shards.read import open_shards
    from fvlm.video.decode import decode_video

_HOMES = {
    "decode_video": "fvlm.video.decode",
    "inspect_clips": "fvlm.model.inspect",
    "load_encoders": "fvlm.model.video",
    "load_model": "fvlm.model.saved",
    "open_clips": "fvlm.clips.reader",
    "open_shards": "fvlm.shards.read",
}
__all__ = [
    "__version__",
    "decode_video",
    "inspect_clips",
    "load_encoders",
    "load_model",
    "open_clips",
    "open_shards",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # 30 ms, in every process that opens videos

        return version("fvlm")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fvlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
