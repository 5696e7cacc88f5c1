"""Sheets that show a clip: where the queries looked, and what was predicted; same view, same bytes.

Axes: T frames, S pixels of a stored frame, side patches along a frame.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fvlm.report.view import ClipView, PassView, Values

CELL, GAP = 160, 8  # pixels: a picture's side, between pictures
TYPE, LINE = 22, 27  # pixels: type, and a line of it; readable where a phone shows half the size
SHOWN = 6  # frames shown, evenly spaced
PAPER, INK, DIM = (22, 24, 28), (236, 236, 236), (190, 192, 198)
PATH = (120, 220, 255)
LEAST_SCALE = 3.0  # times uniform: brightest colour of a map, so that even attention looks even

ARMS = {
    "actual": "actual\n(decoded)",
    "coarse": "coarse pass",
    "fine": "fine pass",
    "persistence": "persistence\n(frame before)",
}

Captioned = tuple[str, Image.Image]


def fixation_sheet(view: ClipView, title: str) -> Image.Image:
    """Columns: frames, then each pass's attention over them; below, its fixations and queries."""
    scale, passes = map_scale(view), view.passes.items()
    rows = [
        [(_moment(view, t), cell(view.frames[t]))]
        + [("", attended(view, name, t, scale)) for name in view.passes]
        for t in shown_frames(view)
    ]
    heads = [
        f"{name}\nentropy {found.entropy:.0%}\npeak {found.peak:.1f} x\nCLS {found.cls_share:.0%}"
        for name, found in passes
    ]
    rows[0] = _under(["frames\n", *heads], rows[0])
    paths = [("fixation path", path_cell(view, found)) for _, found in passes]
    queries = [("query similarity", similarity_cell(found.similarity)) for _, found in passes]
    blank = ("", Image.new("RGB", (CELL, CELL), PAPER))
    return grid(title, [*rows, [("", _legend(scale)), *paths], [blank, *queries]])


def prediction_sheet(view: ClipView, title: str) -> Image.Image:
    """Columns: the actual frame, then what coarse pass, fine pass and persistence predicted."""
    rows = []
    for t in shown_frames(view):
        cells = [prediction_cell(view, arm, t) for arm in ARMS]
        captions = [_moment(view, t), *(error for _, error in cells[1:])]
        rows.append(
            [(caption, picture) for caption, (picture, _) in zip(captions, cells, strict=True)]
        )
    rows[0] = _under(list(ARMS.values()), rows[0])
    return grid(title, rows)


def grid(heading: str, rows: Sequence[Sequence[Captioned]], *, below: int = 0) -> Image.Image:
    """Rows of cells, each under its lines of text, and `below` empty pixels; even in size."""
    lines = [max(caption.count("\n") + 1 for caption, _ in row) for row in rows]
    top = GAP + (heading.count("\n") + 1) * LINE
    width = GAP + max(map(len, rows)) * (CELL + GAP)
    height = top + sum(lines) * LINE + len(rows) * (CELL + GAP) + below
    canvas = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
    write_text(canvas, GAP, GAP // 2, heading)
    for row, count in zip(rows, lines, strict=True):
        for column, (caption, picture) in enumerate(row):
            x = GAP + column * (CELL + GAP)
            write_text(canvas, x, top, caption)
            canvas.paste(picture, (x, top + count * LINE))
        top += count * LINE + CELL + GAP
    return canvas


def attended(view: ClipView, name: str, t: int, scale: float) -> Image.Image:
    """Frame t under the attention of a pass, its fixation ringed."""
    found = view.passes[name]
    picture = attention_cell(view.frames[t], found.maps[t], scale)
    return mark_fixation(picture, found.fixations[t])


def prediction_cell(view: ClipView, arm: str, t: int) -> tuple[Image.Image, str]:
    """What an arm predicts for frame t, decoded, and its error as text."""
    if arm == "persistence":
        if t == 0:
            return Image.new("RGB", (CELL, CELL), PAPER), "none before"
        picture = cell(view.decoded["actual"][t - 1])
    else:
        picture = cell(view.decoded[arm][t])
    return picture, "" if arm == "actual" else f"error {view.losses[arm][t]:.4f}"


def shown_frames(view: ClipView) -> list[int]:
    """Evenly spaced frames, the first and the last among them."""
    count = len(view.frames)
    return [int(t) for t in np.linspace(0, count - 1, min(SHOWN, count)).round()]


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
    for radius, colour in ((12, PAPER), (11, PATH), (10, PATH), (9, PATH), (8, PAPER)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour)
    return picture


def path_cell(view: ClipView, found: PassView, *, until: int | None = None) -> Image.Image:
    """The fixations up to frame `until` (default: all) in order, over that frame; late is light."""
    places = [
        (x * CELL, y * CELL) for x, y in found.fixations[: None if until is None else until + 1]
    ]
    picture = cell(view.frames[len(places) - 1]).point(lambda value: value // 2)
    draw = ImageDraw.Draw(picture)
    draw.line(places, fill=DIM, width=2)
    shades = colormaps["viridis"](np.linspace(0.25, 1, len(found.maps)))
    for number, (x, y) in enumerate(places):
        colour = tuple(int(value * 255) for value in shades[number][:3])
        draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=colour, outline=PAPER)
    return picture


def similarity_cell(similarity: Values) -> Image.Image:
    """Cosine of the queries of every two frames, first frame top left: black 0 or less, light 1."""
    colours = colormaps["cividis"](np.clip(similarity, 0, 1))[..., :3]
    pixels = (colours * 255).round().astype(np.uint8)
    return Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.NEAREST)


def printable(text: str, most: int = 60) -> str:
    """A title in the letters of the built-in font, cut to one line."""
    return text.encode("latin-1", "replace").decode("latin-1")[:most]


def write_text(image: Image.Image, x: int, y: int, text: str) -> None:
    """Lines of text from a top left corner."""
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(text.split("\n")):
        draw.text((x, y + number * LINE), line, fill=INK, font=_font())


def _moment(view: ClipView, t: int) -> str:
    return f"frame {t + 1}, {view.seconds[t]:.1f} s"


def _under(heads: Sequence[str], row: Sequence[Captioned]) -> list[Captioned]:
    """A row with the heads of its columns above its captions."""
    most = max(head.count("\n") for head in heads)
    filled = [head + "\n" * (most - head.count("\n")) for head in heads]
    return [
        (f"{head}\n{caption}", picture)
        for head, (caption, picture) in zip(filled, row, strict=True)
    ]


def _legend(scale: float) -> Image.Image:
    legend = Image.new("RGB", (CELL, CELL), PAPER)
    legend.paste(_colour_bar(CELL), (0, 0))
    write_text(legend, 0, LINE, f"attention, 0 to\n{scale:.1f} x uniform\nring: most")
    return legend


def _colour_bar(width: int) -> Image.Image:
    shades = colormaps["inferno"](np.linspace(0, 1, width))[None, :, :3]
    return Image.fromarray((shades * 255).astype(np.uint8)).resize((width, LINE - 4))


@cache
def _font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=TYPE)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow's wheels have FreeType"
    return font
