"""Does a file's outer structure add up? Finds lost, moved and damaged bytes without decoding.

Matroska, MP4 and AVI are trees of elements that state their own length, so a missing or inserted
byte shows at the next element; Matroska writers often add a CRC-32 as well. Decoders hide such
damage: a plain loop over a damaged file mostly yields wrong pictures without an error.

Sources: RFC 8794 and RFC 9559 (EBML, Matroska), ISO/IEC 14496-12 (MP4), Microsoft's AVI RIFF
reference with the OpenDML extension.
"""

import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO

from fvlm.core.errors import VideoError
from fvlm.video.files import opened
from fvlm.video.reasons import Reason

SEGMENT, CLUSTER, CRC_32 = 0x18538067, 0x1F43B675, 0xBF
TOP_LEVEL = {  # children of a Segment
    *(0x114D9B74, 0x1549A966, 0x1654AE6B, CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770),
    *(0x1254C367, 0xEC, CRC_32, 0x1B538667),
}
IN_CLUSTER = {0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0x5854, 0xAF, 0xEC, CRC_32}
MAX_CHECKED_BYTES = 2**26  # an element that is larger is not read into memory for its CRC
FRAME_BOXES = {b"mdat", b"moof"}  # of MP4: the frames, and the table of a fragment's frames
UNKNOWN_SIZES = (bytes(4), b"\xff" * 4)  # of AVI, where the writer could not go back
AVI_CHUNK = re.compile(rb"\d\d[a-z]{2}|ix\d\d|JUNK|idx1|LIST|rec ", re.IGNORECASE)


def check_structure(path: str, container: str) -> bool:
    """Raise VideoError(missing_frames | wrong_frames) when the file contradicts itself.

    `container` is the short name of `container_name`; containers without such a structure pass.
    False for a film whose writer could not go back to its header: what that declares is void.
    """
    check: dict[str, Callable[[IO[bytes], int], bool | None]]
    check = {"mp4": _check_mp4, "mkv": _check_matroska, "webm": _check_matroska, "avi": _check_avi}
    if container not in check:
        return True
    with opened(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        return check[container](file, size) is not False


def _truncated(what: str, end: int, size: int) -> VideoError:
    message = f"truncated: {what} should end at byte {end}, the file has {size}"
    return VideoError(Reason.MISSING_FRAMES, message)


def _damaged(what: str, position: int) -> VideoError:
    return VideoError(Reason.WRONG_FRAMES, f"the file is damaged: {what} at byte {position}")


def _check_mp4(file: IO[bytes], size: int) -> None:
    """Whatever follows a complete film was appended; a film in fragments never is complete."""
    position, seen = 0, set[bytes]()
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length == 0:  # up to the end of the file
            return
        if not kind.strip(b"\0"):  # padding that no box claims
            return
        is_complete = {b"moov", b"mdat"} <= seen and b"moof" not in seen
        if length < 8 or not all(32 <= byte < 127 or byte == 0xA9 for byte in kind):
            if is_complete:
                return
            raise _damaged("a box without sense", position)
        position += length
        seen.add(kind)
        if position > size and not (is_complete and kind not in FRAME_BOXES):
            raise _truncated(f"box {kind.decode('latin-1')}", position, size)


def _check_matroska(file: IO[bytes], size: int) -> None:
    for identity, start, end in _elements(file, 0, size):
        if identity == SEGMENT:
            if end is not None and end > size:
                raise _truncated("the segment", end, size)
            _check_segment(file, start, end or size)
            return


def _check_segment(file: IO[bytes], start: int, end: int) -> None:
    for identity, body, element_end in _elements(file, start, end):
        if identity not in TOP_LEVEL:
            raise _damaged("an unknown element", body)
        if element_end is None:  # a live recording: only reading on tells where it ends
            return
        if element_end > end:
            raise _truncated("an element", element_end, end)
        _check_crc(file, body, element_end)
        if identity == CLUSTER:
            _check_cluster(file, body, element_end)


def _check_cluster(file: IO[bytes], start: int, end: int) -> None:
    position = start
    for identity, body, element_end in _elements(file, start, end):
        if identity not in IN_CLUSTER or element_end is None or element_end > end:
            raise _damaged("a damaged cluster", body)
        position = element_end
    if position != end:
        raise _damaged("a cluster of another length", end)


def _check_crc(file: IO[bytes], start: int, end: int) -> None:
    """A CRC-32 is its parent's first child and covers the rest of it, little-endian."""
    if not 6 <= end - start <= MAX_CHECKED_BYTES:
        return
    file.seek(start)
    body = file.read(end - start)
    if body[:2] == b"\xbf\x84" and zlib.crc32(body[6:]) != int.from_bytes(body[2:6], "little"):
        raise _damaged("an element with a wrong checksum", start)


def _elements(file: IO[bytes], start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """(identity, start of its body, end or None when unknown) of each EBML element in a range."""
    position = start
    while position < end:
        file.seek(position)
        header = file.read(12)
        identity_length = 9 - header[0].bit_length() if header and header[0] else 9
        if identity_length > 4 or len(header) <= identity_length:
            raise _damaged("an invalid element", position)
        first = header[identity_length]
        size_length = 9 - first.bit_length() if first else 9
        if size_length > 8:
            raise _damaged("an invalid length", position)
        body = position + identity_length + size_length
        raw = header[identity_length : identity_length + size_length]
        length = int.from_bytes(raw, "big") & ~(1 << 7 * size_length)
        is_unknown = length == (1 << 7 * size_length) - 1
        identity = int.from_bytes(header[:identity_length], "big")
        yield identity, body, None if is_unknown else body + length
        if is_unknown:
            return
        position = body + length


def _check_avi(file: IO[bytes], size: int) -> bool:
    """False when sizes are unknown, as a writer into a pipe leaves them."""
    position = 0
    while position + 12 <= size:
        file.seek(position)
        header = file.read(12)
        if header[:4] != b"RIFF" or header[8:] not in (b"AVI ", b"AVIX"):
            if position == 0:
                raise _damaged("no RIFF header", 0)
            return True  # something appended
        if header[4:8] in UNKNOWN_SIZES:
            _check_chunks(file, position + 12, size, are_sizes_known=False)
            return False
        end = position + 8 + int.from_bytes(header[4:8], "little")
        is_complete = _check_chunks(file, position + 12, min(end, size))
        if end > size + 1 and not is_complete:
            raise _truncated("the RIFF chunk", end, size)
        position = end + end % 2
    return True


def _check_chunks(file: IO[bytes], start: int, end: int, *, are_sizes_known: bool = True) -> bool:
    """Chunks of a RIFF list; only the list of frames is looked into.

    Returns whether that list is complete: what follows it is the index, which nobody needs.
    """
    position, is_complete = start, False
    while position + 8 <= end:
        file.seek(position)
        header = file.read(12)
        length, kind = int.from_bytes(header[4:8], "little"), header[8:]
        if not all(32 <= byte < 127 for byte in header[:4]):
            raise _damaged("a chunk without sense", position)
        holds_frames = header[:4] == b"LIST" and kind in (b"movi", b"rec ")
        if holds_frames and not are_sizes_known and header[4:8] in UNKNOWN_SIZES:
            _check_frames(file, position + 12, end)
            return True
        following = position + 8 + length + length % 2
        if following > end + 1:
            if is_complete:
                return True
            raise _truncated("a chunk", following, end)
        if holds_frames:
            _check_frames(file, position + 12, position + 8 + length)
            is_complete = True
        position = following
    return is_complete


def _check_frames(file: IO[bytes], start: int, end: int) -> None:
    position = start
    while position + 8 <= end:
        header = os.pread(file.fileno(), 8, position)  # thousands of these: no buffer to fill
        if not AVI_CHUNK.fullmatch(header[:4]):
            raise _damaged("a frame without a header", position)
        length = int.from_bytes(header[4:], "little")
        position += 8 + length + length % 2
        if position > end + 1:
            raise _truncated("a frame", position, end)
