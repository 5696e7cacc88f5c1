"""Run a notebook from the top and store what its cells print and draw, without Jupyter.

    python -m tools.notebook docs/from_video_to_verdict.ipynb

The cells share one namespace, as in a notebook; a figure that a cell leaves open is drawn below it.
The first cell that fails ends it, and the file stays as it was.
"""

import argparse
import base64
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from fvlm.core.io import atomic_write

DPI, QUALITY = 70, {"quality": 80}  # of stored figures: git keeps every version


def run_cells(notebook: dict[str, Any]) -> None:
    """Run the code cells in order and replace their outputs."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    code = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    for number, cell in enumerate(code, start=1):
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
        cell["execution_count"] = number
        cell["outputs"] = [*_text(printed.getvalue()), *_figures()]


def _text(printed: str) -> list[dict[str, Any]]:
    lines = printed.splitlines(keepends=True)
    return [{"output_type": "stream", "name": "stdout", "text": lines}] if lines else []


def _figures() -> list[dict[str, Any]]:
    """The open figures as JPEG; closes them."""
    outputs = []
    for number in plt.get_fignums():
        content = io.BytesIO()
        figure = plt.figure(number)
        figure.savefig(content, format="jpeg", bbox_inches="tight", dpi=DPI, pil_kwargs=QUALITY)
        data = {"image/jpeg": base64.b64encode(content.getvalue()).decode()}
        outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
    plt.close("all")
    return outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path)
    path = parser.parse_args().notebook
    notebook = json.loads(path.read_text())
    plt.switch_backend("agg")
    run_cells(notebook)
    with atomic_write(path.absolute()) as file:
        file.write((json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
