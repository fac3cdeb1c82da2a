"""From real shards to the rows of every rank."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nextstep.data.augment import Shares
from nextstep.data.loader import Loader, LoaderConfig, Row
from nextstep.data.planning import one_per_row
from nextstep.data.shards import RawSample, ShardSet, ShardWriter
from nextstep.data.sources import ShardSource, SourceOptions
from nextstep.text.tokenizer import TextTokenizer
from tests.data import toys

CONFIG = LoaderConfig(row_length=128, rows_per_step=6, window_rows=6, max_broken_share=0.1)
ONE_TOKEN = SourceOptions(grids=((1, 1),))


def shown(rows: list[Row]) -> list[list[tuple[str, int, list[int], bytes]]]:
    """Everything about the rows that training could see."""
    return [
        [(d.key, d.seed, d.sequence.ids, b"".join(p.tobytes() for p in found)) for d, found in row]
        for row in rows
    ]


def names(rows: list[Row]) -> list[list[str]]:
    return [[document.key for document, _ in row] for row in rows]


def epoch(source: ShardSource, rank: int, world: int, steps: int) -> tuple[list[list[str]], Loader]:
    loader = Loader([source], [1], names, CONFIG, rank=rank, world=world, pack=one_per_row)
    rows = [row for _ in range(steps) for batch in loader.next_step().batches for row in batch]
    return rows, loader


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    whole, broken = (tmp_path_factory.mktemp("sets") / name for name in ("whole", "broken"))
    toys.write(whole, 1000, per_shard=100)
    toys.damage(broken, toys.write(broken, 1000, per_shard=100))
    return whole, broken


def test_a_thousand_samples_with_four_kinds_of_damage_train_in_the_same_order(
    text_tokenizer: TextTokenizer, damaged: tuple[Path, Path]
) -> None:
    whole, broken = (
        ShardSource(ShardSet(folder), "image_text", text_tokenizer, ONE_TOKEN) for folder in damaged
    )
    bad = {
        broken.samples.key(index)  # type: ignore[attr-defined]
        for index in range(1000)
        if toys.reason(broken.samples, index)  # type: ignore[arg-type]
    }
    expected = [key for row in epoch(whole, 0, 1, 165)[0] for key in row if key not in bad]
    found, loader = epoch(broken, 0, 1, 165)
    order = [key for row in found for key in row]
    length = min(len(order), len(expected))
    assert length > 900
    assert order[:length] == expected[:length]
    skipped = loader.report()["skipped"]
    assert {"corrupt picture", "wrong tag count", "decompression bomb", "truncated shard"} == set(
        skipped
    )
    assert {key for entry in skipped.values() for key in entry["first"]} <= bad
    assert 45 <= skipped["truncated shard"]["samples"] <= 55
    assert 0.04 < loader.report()["broken_share"] < 0.06
    # And so on three ranks.
    ranks = [epoch(broken, rank, 3, 40)[0] for rank in range(3)]
    assert [row for rows in zip(*ranks, strict=True) for row in rows] == found[:240]


def mixed(folder: Path) -> None:
    """Small sets of the four kinds."""
    pictures = tuple(toys.picture(n * 37, (48, 32)) for n in range(3))
    samples = {
        "text": RawSample({"text": "two cats make it blue " * 4}),
        "image_text": RawSample(
            {"caption": "a red apple", "caption_all": ["x", "y"]}, pictures[:1]
        ),
        "image_to_image": RawSample({"caption": "<image_0>make it blue<image_1>"}, pictures[:2]),
        "interleaved": RawSample(
            {"caption": "one <image_0> two <image_1> three <image_2> end"}, pictures
        ),
    }
    for kind, sample in samples.items():
        with ShardWriter(folder / kind, kind, kind, 10) as writer:
            for number in range(25):
                writer.add(replace(sample, record={**sample.record, "number": number}))


def mixed_loader(folder: Path, tokenizer: TextTokenizer, workers: int) -> Loader:
    options = SourceOptions(
        areas=(32, 48), crop="random", drop_text_prob=0.3, drop_condition_prob=0.1,
        captions={"caption": 1, "caption_all": 1, "text": 1}, shares=Shares(), max_length=128,
    )  # fmt: skip
    sources = [
        ShardSource(ShardSet(path), path.name, tokenizer, options)
        for path in sorted(folder.iterdir())
    ]
    config = replace(CONFIG, by="tokens", workers=workers)
    return Loader(sources, [3, 1, 1, 2], shown, config)


def eight_steps(tokenizer: TextTokenizer, folder: Path, workers: int) -> tuple[str, Loader]:
    """A hash of everything that eight steps show."""
    loader = mixed_loader(folder, tokenizer, workers)
    steps = [loader.next_step() for _ in range(8)]
    return hashlib.sha256(repr(steps).encode()).hexdigest(), loader


PROGRAM = """
import sys
from pathlib import Path
from nextstep.text.tokenizer import TextTokenizer
from tests.data.test_shards_to_rows import eight_steps
print(eight_steps(TextTokenizer.from_folder(Path(sys.argv[1])), Path(sys.argv[2]), 5)[0])
"""


def test_four_kinds_give_the_same_rows_in_every_process(
    text_tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer").mkdir()
    text_tokenizer.save(tmp_path / "tokenizer")
    mixed(tmp_path / "sets")
    here, loader = eight_steps(text_tokenizer, tmp_path / "sets", 2)
    there = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "tokenizer", tmp_path / "sets"],
        env={**os.environ, "PYTHONHASHSEED": "1"}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert there.strip() == here
    used = loader.report()["sources"]
    total = sum(entry["tokens"] for entry in used.values())
    shares = [used[name]["tokens"] / total for name in sorted(used)]
    assert all(abs(s - w / 7) < 0.03 for s, w in zip(shares, [3, 1, 1, 2], strict=True))
    assert loader.report()["skipped"] == {}
