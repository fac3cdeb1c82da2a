"""Small sets of shards, whole and damaged, for several tests."""

from __future__ import annotations

import functools
import io
import json
import struct
import zlib
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image

from nextstep.data import shard_index, tar
from nextstep.data.documents import SampleError
from nextstep.data.shards import RawSample, ShardSet, ShardWriter


def picture(value: int = 0, size: tuple[int, int] = (24, 16), form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value % 256, value // 256 % 256, 40)).save(buffer, form)
    return buffer.getvalue()


@functools.cache
def bomb(side: int = 30_000) -> bytes:
    """A whole PNG of side x side black pixels in some hundred kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc32(name + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + -(-side // 8))
    data = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def noise(side: int = 64) -> bytes:
    """A JPEG of some kilobytes that is still a JPEG when its end is cut off."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write(folder: Path, count: int, per_shard: int = 10, kind: str = "image_text") -> ShardSet:
    with ShardWriter(folder, "toys", kind, per_shard) as writer:
        for number in range(count):
            record = {"caption": f"thing {number}", "score": number / 2}
            writer.add(RawSample(record, (picture(number),)))
    return ShardSet(folder)


def put_raw(path: Path, members: list[tuple[str, bytes]], end: bool = True) -> None:
    """A tar as another program may write it."""
    with path.open("wb") as file:
        for name, data in members:
            file.write(tar.header(name, len(data)))
            file.write(data + bytes(tar.padded(len(data)) - len(data)))
        file.write(tar.END if end else b"")


def reason(shards: ShardSet, index: int) -> str:
    """Why a sample cannot be used; "" when it can."""
    try:
        shards.entry(index)
        shards.pictures(index)
    except SampleError as error:
        return error.reason
    return ""


def damage(folder: Path, shards: ShardSet) -> None:
    """Break sample 110, 220 and 330 and cut the sixth shard in the middle."""
    other = {
        110: (b'{"caption": "a"}', noise()[: len(noise()) // 2]),
        220: (b'{"caption": "<image_0> and <image_1>"}', picture()),
        330: (b'{"caption": "a"}', bomb()),
    }
    for index in other:
        path = shards.path(index // 100)
        members = []
        for i in shards.samples_of(index // 100):
            key = shards.key(i).rpartition("/")[2]
            told = other.get(i, (json.dumps(shards.record(i)).encode(), shards.picture_files(i)[0]))
            members += [(f"{key}.json", told[0]), (f"{key}-0.jpg", told[1])]
        put_raw(path, members)
        shard_index.index_path(path).unlink()
    path = shards.path(5)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
