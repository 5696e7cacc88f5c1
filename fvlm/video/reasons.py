"""Why a video cannot be used: the one list of typed reasons that manifests and metrics carry."""

from enum import StrEnum


class Reason(StrEnum):
    """Value of `VideoError.reason` for everything that probing, decoding and the worker refuse."""

    # The file
    NOT_A_FILE = "not_a_file"  # missing, a folder, a FIFO, a device, a loop of links
    EMPTY_FILE = "empty_file"  # 0 bytes
    CHANGED_SINCE_FILTER = "changed_since_filter"  # the content is not the one that was filtered
    # The container
    UNREADABLE = "unreadable"  # no container that FFmpeg knows, or a damaged header
    NO_VIDEO_STREAM = "no_video_stream"  # audio only, or only an attached picture
    UNKNOWN_CODEC = "unknown_codec"  # no decoder, encrypted, or no picture size
    TOO_MANY_PIXELS = "too_many_pixels"  # a picture larger than MAX_PIXELS
    NO_FRAMES = "no_frames"  # a video stream without packets
    NO_TIMESTAMPS = "no_timestamps"  # packets that do not say when they are shown
    # The pictures
    DECODE_ERROR = "decode_error"  # the decoder reports damage
    MISSING_FRAMES = "missing_frames"  # fewer frames than the container declares: truncated
    WRONG_FRAMES = "wrong_frames"  # frames that contradict the container's timestamps
    TOO_FEW_FRAMES = "too_few_frames"  # fewer frames than are to be stored
    # The process that decodes
    TIMEOUT = "timeout"  # took longer than the deadline
    CRASHED = "crashed"  # the process died
    OUT_OF_MEMORY = "out_of_memory"  # needed more memory than the limit


# Reasons that the machine or the moment gave, not the content: another run may not meet them, so
# they are not remembered.
PASSING = frozenset(
    {
        Reason.NOT_A_FILE,
        Reason.CHANGED_SINCE_FILTER,
        Reason.TIMEOUT,
        Reason.CRASHED,
        Reason.OUT_OF_MEMORY,
    }
)


def in_words(error: Exception) -> str:
    """What a library's exception says, without its numbers and names of classes."""
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
