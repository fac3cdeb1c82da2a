"""Whether the bytes of a PNG are those that were written: the format has a checksum a chunk.

Source: PNG specification, third edition, section 5.
"""

from __future__ import annotations

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def is_whole_png(data: bytes) -> bool:
    """Whether a file is a PNG from its first to its last byte, with every checksum right."""
    if not data.startswith(SIGNATURE):
        return False
    place, name, first = len(SIGNATURE), b"", True
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        name, end = data[place + 4 : place + 8], place + 8 + size
        if first and name != b"IHDR":
            return False
        if zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        place, first = end + 4, False
        if name == b"IEND":
            break
    return name == b"IEND" and place == len(data)
