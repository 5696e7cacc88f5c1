"""What FFmpeg says about damage while it decodes, as evidence.

FFmpeg conceals much damage and only prints about it. In the worker stderr is a file of its own;
FFmpeg's own callback writes there. The log level stays as it is, and Python takes no part: its
logging callback can deadlock with decoding threads.
"""

import os
import re
import stat

import av.logging

LINE = re.compile(r"\[(?P<context>[^\]@]+) @ 0x[0-9a-f]+\] (?P<text>.*)")
# Remarks of decoders that do not make a picture wrong.
BENIGN = re.compile(
    r"A non-intra slice in an IDR NAL unit"
    r"|mmco: unref short failure"  # asks to forget a picture that is forgotten already
    r"|Increasing reorder buffer|deprecated|not implemented|unsupported|experimental"
)
# What demuxers say when bytes are lost or make no sense.
DEMUXER_DAMAGE = re.compile(
    r"exceeds containing|exceeds max length|invalid as first byte|ended prematurely"
    r"|Invalid track number|corrupt|partial file|Truncat|Failed to parse header",
    re.IGNORECASE,
)


class Messages:
    """Collects what is printed from now on; hears nothing unless stderr is a file."""

    def __init__(self) -> None:
        self._is_file = stat.S_ISREG(os.fstat(2).st_mode)
        self._start = os.fstat(2).st_size
        if self._is_file:
            av.logging.restore_default_callback()

    def damage(self, decoder: str | None) -> str | None:
        """The first message that means damage.

        `decoder` is the name of the decoder whose remarks count; None counts the demuxer's only.
        """
        if not self._is_file:
            return None
        said = os.pread(2, os.fstat(2).st_size - self._start, self._start)
        lines = said.decode(errors="replace").splitlines()
        for line in lines:
            match = LINE.search(line)
            if match is None or BENIGN.search(match["text"]):
                continue
            if match["context"] == decoder or DEMUXER_DAMAGE.search(match["text"]):
                return match["text"]
        return None
