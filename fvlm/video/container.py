"""Open a video of unknown origin and choose the stream that a player shows.

Nothing here trusts the file: every exception of the demuxer becomes a VideoError. Callers run it
in the sandboxed worker (`fvlm.video.worker`), because FFmpeg itself may crash or never return.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import av
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from fvlm.core.errors import VideoError
from fvlm.video.files import Reader, opened
from fvlm.video.reasons import Reason, in_words

MAX_PIXELS = 8192 * 4320  # per picture; 8K video passes, a decompression bomb does not
BUFFER_BYTES = 2**16  # what FFmpeg reads at once
# Codecs of still pictures: beside a film they are its cover.
PICTURES = frozenset({"mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000", "jpegls"})
# FFmpeg's names of formats that hold the video themselves: playlists (concat, hls, dash, sdp, ..)
# and names that are patterns (image2) would read other files than the one that was hashed.
CONTAINERS = (
    *("mov", "matroska", "avi", "flv", "mpegts", "mpeg", "mpegvideo", "ogg", "asf", "rm", "mxf"),
    *("gxf", "nut", "dv", "wtv", "nsv", "swf", "ivf", "obu", "h261", "h263", "h264", "hevc", "vvc"),
    *("m4v", "vc1", "dirac", "mjpeg", "gif", "apng", "yuv4mpegpipe"),
)
ALLOWED = ",".join(CONTAINERS)
SOUND = ("mp3", "wav", "flac", "aac", "ac3", "eac3", "aiff", "au", "caf", "amr", "ape", "w64", "wv")
# Report damage instead of guessing a picture. Source: FFmpeg's `-err_detect`.
STRICT = {
    "err_detect": "crccheck+bitstream+buffer+explode",
    "max_pixels": str(MAX_PIXELS),
    "threads": "1",
    "format_whitelist": ALLOWED,
}
# Find damage, but do not refuse what decoders forgive.
TOLERANT = {**STRICT, "err_detect": "crccheck+bitstream+buffer"}


def codec_name(stream: VideoStream) -> str:
    """FFmpeg's name of the format, whichever decoder reads it (`av1`, not `libdav1d`)."""
    return stream.codec_context.codec.canonical_name


def container_name(container: InputContainer) -> str:
    """One short name for FFmpeg's list of aliases."""
    names = container.format.name.split(",")
    if "mp4" in names:
        return "mp4"
    if "webm" in names:
        return "webm" if container.name.lower().endswith(".webm") else "mkv"
    return names[0]


@contextmanager
def open_stream(path: str, options: dict[str, str]) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open `path` and choose its video stream; other streams are not even read.

    `options` is STRICT or TOLERANT. Raises VideoError for everything that is not a readable video;
    errors of the demuxer inside the block are translated too.
    """
    try:
        with _open(path, options) as container:
            stream = _video_stream(path, container)
            for other in container.streams:
                if other.index != stream.index:
                    other.discard = Discard.all
            stream.codec_context.options = options
            yield container, stream
    except VideoError:
        raise
    except MemoryError as error:
        raise VideoError(Reason.OUT_OF_MEMORY, f"{path}: {error}") from None
    except Exception as error:  # FFmpeg's bindings raise IndexError, UnicodeDecodeError, ...
        raise VideoError(Reason.UNREADABLE, f"{path}: {in_words(error)}") from None


@contextmanager
def _open(path: str, options: dict[str, str]) -> Iterator[InputContainer]:
    """FFmpeg reads by a descriptor, so that no name can be taken for a protocol (`concat:a|b`)."""
    with opened(path) as descriptor:
        try:
            reader = Reader(descriptor, path)
            container = av.open(
                reader, "r", options=options, metadata_errors="replace", buffer_size=BUFFER_BYTES
            )
        except av.InvalidDataError:
            message = f"{path} is not a video file, or its beginning is damaged"
            raise VideoError(Reason.UNREADABLE, message) from None
        except av.ArgumentError:  # FFmpeg's answer to a format that is not on the list
            if options["format_whitelist"] == ALLOWED and _is_sound(path):
                raise VideoError(Reason.NO_VIDEO_STREAM, f"{path} holds sound only") from None
            message = f"{path} is no container of videos: a playlist, a picture or text"
            raise VideoError(Reason.UNREADABLE, message) from None
        with container:
            yield container


def _is_sound(path: str) -> bool:
    """Whether the file is in a format of music and speech."""
    try:
        with _open(path, {"format_whitelist": ",".join(SOUND)}):
            return True
    except VideoError:
        return False


def _video_stream(path: str, container: InputContainer) -> VideoStream:
    """The stream that a player shows, with a decoder and a sane size.

    Pictures are no films. Of the films those that the file marks as default, else all of them; of
    these the one with the largest picture, the first where several are equal.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError(Reason.NO_VIDEO_STREAM, f"{path} has no video stream")
    films = [s for s in streams if not _is_picture(s, streams)] or streams
    marked = [s for s in films if s.disposition & Disposition.default] or films
    stream = max(marked, key=_area)
    # PyAV has no codec context, and no size, for a stream whose decoder is unknown.
    width, height = (0, 0) if stream.codec_context is None else _size(path, stream)
    if width * height > MAX_PIXELS:
        message = f"{path}: {width}x{height}, at most {MAX_PIXELS} pixels"
        raise VideoError(Reason.TOO_MANY_PIXELS, message)
    if stream.codec_context is None or not stream.width or not stream.height:
        raise VideoError(Reason.UNKNOWN_CODEC, f"{path}: no decoder, or no picture size")
    return stream


def _is_picture(stream: VideoStream, streams: list[VideoStream]) -> bool:
    """A single frame; or, where the file does not count them, a picture codec beside a film's."""
    if stream.frames:
        return stream.frames == 1
    names = {s.index: codec_name(s) for s in streams if s.codec_context is not None}
    return names.get(stream.index) in PICTURES and not set(names.values()) <= PICTURES


def _area(stream: VideoStream) -> int:
    return 0 if stream.codec_context is None else stream.width * stream.height


def _size(path: str, stream: VideoStream) -> tuple[int, int]:
    """Width and height; a decoder that finds them too large sets zeros, so then none is opened."""
    if stream.width and stream.height:
        return stream.width, stream.height
    with _open(path, {**TOLERANT, "codec_whitelist": "none"}) as container:
        declared = next(s for s in container.streams.video if s.index == stream.index)
        return declared.width, declared.height
