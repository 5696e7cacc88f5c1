"""Which packets are decoded: leading frames, closed and open groups, doubtful timelines."""

from fvlm.video.plan import can_plan, plan_spans
from fvlm.video.timeline import PacketFacts


def packets(times: str, keys: set[int]) -> list[PacketFacts]:
    """Packets in decoding order with the given display times."""
    return [
        PacketFacts(time=int(t), duration=1, is_keyframe=i in keys, is_shown=True, has_pts=True)
        for i, t in enumerate(times.split())
    ]


CLOSED = packets("0 2 1 3 5 4 6 8 7", {0, 3, 6})
OPEN = packets("0 2 1 5 3 4 6 9 7 8 10", {0, 3, 7})  # 3, 4 lead keyframe 5; 7, 8 lead keyframe 9


def test_one_span_for_each_group_that_holds_a_target() -> None:
    spans = plan_spans(CLOSED, [1, 7, 8], codec="hevc")
    assert spans is not None
    assert [(span.start, span.targets) for span in spans] == [(0, (2,)), (6, (7, 8))]


def test_a_leading_target_is_decoded_from_the_group_before() -> None:
    spans = plan_spans(OPEN, [4], codec="hevc")
    assert spans is not None
    assert [(span.start, span.targets) for span in spans] == [(0, (5,))]


def test_leading_packets_without_a_target_are_dropped() -> None:
    spans = plan_spans(OPEN, [6], codec="hevc")
    assert spans is not None
    assert [(span.start, span.dropped) for span in spans] == [(3, frozenset({4, 5}))]


def test_spans_that_would_overlap_are_one() -> None:
    spans = plan_spans(OPEN, [4, 6], codec="hevc")
    assert spans is not None
    assert [(span.start, span.targets, span.dropped) for span in spans] == [
        (0, (5, 6), frozenset())
    ]


def test_a_leading_target_after_its_keyframe_reaches_back() -> None:
    spans = plan_spans(OPEN, [4, 5, 8, 9], codec="hevc")  # keyframes come before their leaders
    assert spans is not None
    assert [(span.start, span.targets) for span in spans] == [(0, (3, 5, 7, 9))]


def test_h264_starts_only_at_closed_groups() -> None:
    spans = plan_spans(OPEN, [6, 10], codec="h264")
    assert spans is not None
    assert [span.start for span in spans] == [0]


def test_doubtful_timelines_are_not_planned() -> None:
    assert plan_spans(packets("0 1 1", {0}), [1], codec="vp9") is None  # a time given twice
    assert plan_spans(packets("0 1 2", {1}), [1], codec="vp9") is None  # does not start with a key
    assert plan_spans(packets("2 0 1", {0}), [1], codec="hevc") is None  # leading from the start


def test_avi_does_not_know_when_frames_are_shown() -> None:
    assert not can_plan("h264", "avi")
    assert not can_plan("hevc", "avi")
    assert can_plan("mjpeg", "avi")
    assert can_plan("h264", "mp4")


def test_only_containers_that_mark_where_decoding_may_start_are_planned() -> None:
    for container in ("flv", "mpegts", "mpeg", "ogg", "asf", "rm", "mxf", "nut", "ivf", "h264"):
        assert not can_plan("h264", container), container
    assert can_plan("mpeg2video", "mpegts")
