"""Small sets of shards, whole and damaged, for several tests."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from nextstep.data import shard_index, tar
from nextstep.data.documents import SampleError
from nextstep.data.shards import RawSample, ShardSet, ShardWriter


def picture(value: int = 0, size: tuple[int, int] = (24, 16), form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value % 256, value // 256 % 256, 40)).save(buffer, form)
    return buffer.getvalue()


def bomb(side: int = 30_000) -> bytes:
    """A PNG of side x side white pixels in some hundred kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
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
    jpeg = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(jpeg, "JPEG")
    other = {
        110: (b'{"caption": "a"}', jpeg.getvalue()[: len(jpeg.getvalue()) // 2]),
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
