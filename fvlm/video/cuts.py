"""Changes of shot: where FFmpeg's scene score says that a frame has little of the one before it."""

from collections.abc import Iterator
from typing import Any

from av.filter import Graph
from av.video.frame import VideoFrame

from fvlm.video.codec import play, time_of
from fvlm.video.container import TOLERANT, open_stream
from fvlm.video.files import check_content
from fvlm.video.timeline import read_timeline

# Of 1. Chosen on cuts that were marked by hand: benchmarks/README.md.
THRESHOLD = 0.2
SMALL = 160  # pixels; width of the frames that are compared


def find_cuts(path: str) -> list[float]:
    """Seconds from the first frame at which a new shot begins, ascending; every frame is decoded.

    The times are those of `pts_seconds` in `decode_video`. Raises VideoError with one of the
    reasons in `fvlm.video.reasons`. Run it in the sandboxed worker on files of unknown origin.
    """
    return [seconds for seconds, score in scene_scores(path) if score > THRESHOLD]


def scene_scores(path: str) -> Iterator[tuple[float, float]]:
    """When each frame is shown, seconds from the first one, and how much of it is new, 0 to 1."""
    scores = SceneScores()
    with open_stream(path, TOLERANT) as (container, stream):
        timeline = read_timeline(path, container, stream)
        shown = timeline.shown
        for turn, (place, frame) in enumerate(play(timeline, stream)):
            time, score = time_of(timeline, turn, place, shown), scores.of(frame)
            yield float((time - shown[0]) * timeline.time_base), score


class SceneScores:
    """How much each frame differs from the one before it, 0 to 1: `scene` of FFmpeg's `select`."""

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._kind: tuple[int, int, str] | None = None

    def of(self, frame: VideoFrame) -> float:
        """The score of the next frame; 0 for the first one, and where size or format change."""
        kind = (frame.width, frame.height, frame.format.name)
        if kind != self._kind or self._graph is None:
            self._kind, self._graph = kind, _graph(frame)
        self._graph.push(frame)
        scored = self._graph.pull()
        return float(scored.metadata["lavfi.scene_score"])


def _graph(frame: VideoFrame) -> Graph:
    graph = Graph()
    nodes = [
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        ),
        graph.add("scale", f"{SMALL}:-2:flags=area"),
        graph.add("select", "gte(scene,0)"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    return graph


def cuts_request(request: dict[str, Any]) -> dict[str, Any]:
    """Worker entry: {"path", "sha256"} -> {"cuts"}; raises VideoError, as `decode_request` does."""
    return {"cuts": find_cuts(check_content(request))}
