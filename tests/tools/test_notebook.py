"""Cells run in one namespace, and what they print and draw is stored below them."""

import base64
import io
from typing import Any

import pytest
from PIL import Image

from tools.notebook import run_cells

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2])"


def notebook(*sources: str) -> dict[str, Any]:
    cells = [{"cell_type": "code", "source": source.splitlines(True)} for source in sources]
    return {"cells": [{"cell_type": "markdown", "source": ["# A"]}, *cells]}


def test_what_cells_print_and_draw_stands_below_them() -> None:
    made = notebook("a = 2", "print(a + 1)\nprint()", PLOT)
    run_cells(made)
    _, first, second, third = made["cells"]
    assert first["outputs"] == []
    assert second["outputs"][0]["text"] == ["3\n", "\n"]
    (drawn,) = third["outputs"]
    picture = Image.open(io.BytesIO(base64.b64decode(drawn["data"]["image/jpeg"])))
    assert picture.width > 100
    assert [cell["execution_count"] for cell in (first, second, third)] == [1, 2, 3]


def test_a_cell_that_fails_is_named() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        run_cells(notebook("a = 0", "1 / a"))
    assert str(error.traceback[-1].path).endswith("cell 2")
