"""Captions beside videos: the text of NAME.txt, or "caption" of NAME.json."""

import json
import os
from collections.abc import Container
from pathlib import Path

from fvlm.core.errors import SourceError

CAPTION_SUFFIXES = (".txt", ".json")
MAX_CAPTION_BYTES = 2**16


class RegularFiles(Container[object]):
    """The names of the regular files beside `path`; asked one by one, never listed."""

    def __init__(self, path: str) -> None:
        self._folder = os.path.dirname(path)  # noqa: PTH120

    def __contains__(self, name: object) -> bool:
        return os.path.isfile(os.path.join(self._folder, str(name)))  # noqa: PTH113, PTH118


def sidecar_caption(path: str, names: Container[object]) -> str:
    """Text of NAME.txt, else "caption" of NAME.json, else nothing; `names`: files beside it."""
    stem = os.path.splitext(path)[0]  # noqa: PTH122
    for suffix in CAPTION_SUFFIXES:
        if os.path.basename(stem) + suffix in names:  # noqa: PTH119
            return _read_caption(Path(stem + suffix))
    return ""


def _read_caption(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CAPTION_BYTES + 1)
        if len(content) > MAX_CAPTION_BYTES:
            raise SourceError(f"{path}: a caption has at most {MAX_CAPTION_BYTES} bytes")
        text = content.decode("utf-8-sig")
        document = {"caption": text} if path.suffix == ".txt" else json.loads(text)
    except UnicodeDecodeError:
        raise SourceError(f"{path}: a caption must be UTF-8") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: {error}") from None
    caption = document.get("caption") if isinstance(document, dict) else document
    if caption is not None and not (isinstance(document, dict) and isinstance(caption, str)):
        raise SourceError(f'{path}: expected {{"caption": "text"}}')
    return (caption or "").strip()
