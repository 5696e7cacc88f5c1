import numpy as np

from fvlm.report.pictures import cell, fixation_sheet, prediction_sheet, shown_frames
from fvlm.report.view import ClipView
from tests.report.conftest import places, view
from tools.fixations import beside

__all__ = ["view"]


def test_each_frame_stands_beside_what_was_predicted_for_it(view: ClipView) -> None:
    """In one line, although one sheet has more lines of text above its frames."""
    found = np.asarray(beside(fixation_sheet(view, "clip"), prediction_sheet(view, "clip")))
    for t in shown_frames(view):
        ((left, above),) = places(np.asarray(cell(view.frames[t])), found)
        # Further right the copy of the frame before shows some of them once more.
        right, beside_it = min(places(np.asarray(cell(view.decoded["actual"][t])), found))
        assert left < right
        assert above == beside_it
