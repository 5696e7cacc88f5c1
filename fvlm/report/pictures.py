"""Sheets that show a clip: where the queries looked, and what was predicted; same view, same bytes.

Axes: T frames, S pixels of a stored frame, side patches along a frame.
"""

from functools import cache

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fvlm.report.view import ClipView, PassView, Values

CELL, GAP, LINE = 160, 6, 20  # pixels: a picture's side, between pictures, of a line of text
LABELS = 130  # pixels; the column that names the rows
COLUMNS = 6  # frames shown, evenly spaced
PAPER, INK, DIM = (22, 24, 28), (236, 236, 236), (150, 152, 158)
PATH = (120, 220, 255)
LEAST_SCALE = 3.0  # times uniform: brightest colour of a map, so that even attention looks even

ARMS = {
    "actual": "actual frame\n(decoded latent)",
    "coarse": "coarse pass",
    "fine": "fine pass",
    "persistence": "persistence\n(frame before)",
}


def fixation_sheet(view: ClipView, title: str) -> Image.Image:
    """Rows: frames, then each pass's attention over them. Right: its fixation path and queries."""
    shown, scale = shown_frames(view), map_scale(view)
    side = LABELS + len(shown) * (CELL + GAP) + GAP
    sheet = _Sheet(side + 2 * (CELL + GAP), 1 + len(view.passes), title)
    for column, t in enumerate(shown):
        x = LABELS + column * (CELL + GAP)
        sheet.paste(x, 0, cell(view.frames[t]), f"frame {t + 1}, {view.seconds[t]:.1f} s")
        for row, found in enumerate(view.passes.values(), start=1):
            picture = attention_cell(view.frames[t], found.maps[t], scale)
            sheet.paste(x, row, mark_fixation(picture, found.fixations[t]))
    sheet.label(0, "frames")
    sheet.text(side, 0, "bright: much attention,")
    sheet.text(side, 1, f"from 0 to {scale:.1f} times uniform")
    sheet.image.paste(_colour_bar(2 * CELL + GAP - 20), (side, sheet.top(0) + 2 * LINE))
    sheet.text(side, 4, "circle: the patch looked at most")
    for row, (name, found) in enumerate(view.passes.items(), start=1):
        sheet.label(row, f"{name}\nentropy {found.entropy:.0%}\npeak {found.peak:.1f} x")
        sheet.paste(side, row, path_cell(view, found), "fixation path")
        sheet.paste(side + CELL + GAP, row, similarity_cell(found.similarity), "query similarity")
    return sheet.image


def prediction_sheet(view: ClipView, title: str) -> Image.Image:
    """Rows: the actual frame, then what coarse pass, fine pass and persistence said it would be."""
    shown = shown_frames(view)
    sheet = _Sheet(LABELS + len(shown) * (CELL + GAP), len(ARMS), title)
    for row, (arm, label) in enumerate(ARMS.items()):
        sheet.label(row, label)
        for column, t in enumerate(shown):
            picture, error = prediction_cell(view, arm, t)
            caption = error if row else f"frame {t + 1}, {view.seconds[t]:.1f} s"
            sheet.paste(LABELS + column * (CELL + GAP), row, picture, caption)
    return sheet.image


def prediction_cell(view: ClipView, arm: str, t: int) -> tuple[Image.Image, str]:
    """What an arm predicts for frame t, decoded, and its error as text."""
    if arm == "persistence":
        if t == 0:
            return Image.new("RGB", (CELL, CELL), PAPER), "no frame before"
        picture = cell(view.decoded["actual"][t - 1])
    else:
        picture = cell(view.decoded[arm][t])
    return picture, "" if arm == "actual" else f"error {view.losses[arm][t]:.4f}"


def shown_frames(view: ClipView) -> list[int]:
    """Evenly spaced frames, the first and the last among them."""
    count = len(view.frames)
    return [int(t) for t in np.linspace(0, count - 1, min(COLUMNS, count)).round()]


def map_scale(view: ClipView) -> float:
    """Attention, in multiples of uniform, that is shown brightest; the same for all passes."""
    every = np.concatenate([found.maps.ravel() for found in view.passes.values()])
    return max(LEAST_SCALE, float(np.quantile(every, 0.995)))


def cell(frame: NDArray[np.uint8]) -> Image.Image:
    """A frame [S,S,3] in the size of a cell."""
    return Image.fromarray(frame).resize((CELL, CELL), Image.Resampling.BICUBIC)


def attention_cell(frame: NDArray[np.uint8], attention: Values, scale: float) -> Image.Image:
    """A frame in grey under its map [side,side]; a patch of `scale` or more is shown brightest.

    The encoder sees whole patches from the top left: what is left over is not covered.
    """
    S, side = frame.shape[0], attention.shape[0]
    covered = round(CELL * (S // side) * side / S)
    strength = np.clip(attention / scale, 0, 1)
    coloured = (colormaps["inferno"](strength)[..., :3] * 255).round().astype(np.uint8)
    grey = cell(frame).convert("L").point(lambda value: value * 6 // 10).convert("RGB")
    size = (covered, covered)
    heat = Image.fromarray(coloured).resize(size, Image.Resampling.NEAREST)
    alpha = Image.fromarray((90 + 120 * strength).astype(np.uint8)).resize(size, 0)
    grey.paste(heat, (0, 0), alpha)
    return grey


def mark_fixation(picture: Image.Image, place: tuple[float, float]) -> Image.Image:
    """A ring around a place (x, y), 0 to 1."""
    x, y = (coordinate * CELL for coordinate in place)
    draw = ImageDraw.Draw(picture)
    for radius, colour in ((9, PAPER), (8, PATH), (7, PATH), (6, PAPER)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour)
    return picture


def path_cell(view: ClipView, found: PassView, *, until: int | None = None) -> Image.Image:
    """The fixations up to frame `until` (default: all) in order, over that frame; late is light."""
    places = [
        (x * CELL, y * CELL) for x, y in found.fixations[: None if until is None else until + 1]
    ]
    picture = cell(view.frames[len(places) - 1]).point(lambda value: value // 2)
    draw = ImageDraw.Draw(picture)
    draw.line(places, fill=DIM, width=1)
    shades = colormaps["viridis"](np.linspace(0.25, 1, len(found.maps)))
    for number, (x, y) in enumerate(places):
        colour = tuple(int(value * 255) for value in shades[number][:3])
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour, outline=PAPER)
    return picture


def similarity_cell(similarity: Values) -> Image.Image:
    """Cosine of the queries of every two frames, first frame top left: black 0 or less, light 1."""
    colours = colormaps["cividis"](np.clip(similarity, 0, 1))[..., :3]
    pixels = (colours * 255).round().astype(np.uint8)
    return Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.NEAREST)


def printable(text: str) -> str:
    """A title in the letters of the built-in font, cut to one line."""
    return text.encode("latin-1", "replace").decode("latin-1")[:80]


def write_text(image: Image.Image, x: int, y: int, text: str, *, dim: bool = False) -> None:
    """Lines of text from a top left corner."""
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(text.split("\n")):
        draw.text((x, y + number * LINE), line, fill=DIM if dim or number else INK, font=_font())


class _Sheet:
    """A title, and rows of cells with a line of text above each cell."""

    def __init__(self, width: int, rows: int, title: str) -> None:
        height = LINE + 2 * GAP + rows * (CELL + LINE + GAP)
        self.image = Image.new("RGB", (width + GAP, height), PAPER)
        write_text(self.image, GAP, GAP, title)

    def top(self, row: int) -> int:
        """Where the text line of a row begins."""
        return LINE + 2 * GAP + row * (CELL + LINE + GAP)

    def label(self, row: int, text: str) -> None:
        write_text(self.image, GAP, self.top(row) + LINE, text)

    def text(self, x: int, line: int, text: str) -> None:
        write_text(self.image, x, self.top(0) + line * LINE, text, dim=True)

    def paste(self, x: int, row: int, picture: Image.Image, caption: str = "") -> None:
        write_text(self.image, x, self.top(row), caption, dim=True)
        self.image.paste(picture, (x, self.top(row) + LINE))


def _colour_bar(width: int) -> Image.Image:
    shades = colormaps["inferno"](np.linspace(0, 1, width))[None, :, :3]
    return Image.fromarray((shades * 255).astype(np.uint8)).resize((width, LINE))


@cache
def _font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=13)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow's wheels have FreeType"
    return font
