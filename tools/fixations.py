"""Make the picture of one clip in README.md from the report's sheets.

    python -m tools.fixations big-buck-bunny-06-mp4-48e60f99ee2afe905517b7e8

The frames and the attention of every pass over them, and beside each what was predicted for it. The
sheets are those of the last `dvc repro`; the key is the name of a clip's files in reports/pictures.
"""

import argparse
from pathlib import Path

from PIL import Image

from fvlm.report.pictures import LINE, PAPER
from pipeline.paths import PICTURES

HIGHER = 2 * LINE  # pixels that the heads of the attention sheet are higher than the others


def beside(attention: Image.Image, predictions: Image.Image) -> Image.Image:
    """The rows of frames of both sheets in line; what stands below them is left out."""
    size = (attention.width + predictions.width, predictions.height + HIGHER)
    both = Image.new("RGB", size, PAPER)
    both.paste(attention, (0, 0))
    both.paste(predictions, (attention.width, HIGHER))
    return both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("key", help="of a clip in reports/pictures")
    parser.add_argument("--out", type=Path, default=Path("docs/fixations.webp"))
    options = parser.parse_args()
    sheets = [PICTURES / f"{options.key}-{name}.png" for name in ("attention", "predictions")]
    picture = beside(*(Image.open(sheet) for sheet in sheets))
    picture.save(options.out, format="WEBP", quality=90, method=6)


if __name__ == "__main__":
    main()
