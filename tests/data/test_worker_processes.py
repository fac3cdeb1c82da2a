"""Worker processes give what threads give: the same batches in the same order, and resumed so."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nextstep.data.batch import ContextNoise, pack_rows
from nextstep.data.documents import Document, SampleError
from nextstep.data.loader import Loader, LoaderConfig
from nextstep.data.steps import Step
from nextstep.data.worker_processes import packed, unpacked
from nextstep.errors import NextStepError
from nextstep.text.sequence import Sequence
from nextstep.world.live import WorldSource
from nextstep.world.singles_source import Singles
from tests.world.test_live import TOKENIZER

CONFIG = LoaderConfig(
    row_length=512, rows_per_step=3, micro_batch_rows=2, window_rows=4, workers=1, ahead=1
)
PACK = partial(
    pack_rows, row_length=512, pad_id=1, head_batch_mul=2, context_noise=ContextNoise(0.5, 0.4)
)


class Numbers:
    """Bare lengths; some samples are filtered, broken, or broken only when they are decoded."""

    def __init__(self, name: str, length: int) -> None:
        self.name, self.kind, self.length = name, "text", length

    def __len__(self) -> int:
        return 50

    def document(self, index: int, seed: int) -> Document | None:
        if index % 17 == 3:
            raise SampleError(f"{self.name}/{index}", "truncated shard", "at its end")
        if index % 7 == 2:
            return None
        ids = list(range(self.length + index % 5))
        return Document(f"{self.name}/{index}", Sequence(ids, ids), (0,), seed, index)

    def pictures(self, document: Document) -> list[np.ndarray]:
        if document.payload == 21:
            raise SampleError(document.key, "corrupt picture")
        if document.payload == 22 and self.name == "deadly":
            os._exit(3)
        if document.payload == 25 and self.name == "buggy":
            raise RuntimeError("a bug")
        return [np.full((1, 1, 3), document.payload, np.uint8)]


def keys(rows: list[Any]) -> list[list[tuple[str, int]]]:
    return [[(document.key, int(pictures[0][0, 0, 0])) for document, pictures in row]
            for row in rows]  # fmt: skip


@contextmanager
def opened(sources: list[Any], batch_of: Any, config: LoaderConfig) -> Iterator[Loader]:
    made = Loader(sources, [1.0] * len(sources), batch_of, config)
    try:
        yield made
    finally:
        made.close()


def worlds() -> list[Any]:
    drawn = ["two_objects", "move", "read_count"]
    return [
        WorldSource(TOKENIZER, 64, drawn, edition="core-48", reasoning_prob=0.9, name="scenes"),
        Singles(TOKENIZER, 64),
    ]


def assert_same(one: Step, other: Step) -> None:
    assert (one.keys, one.tokens, one.state) == (other.keys, other.tokens, other.state)
    for batch, again in zip(one.batches, other.batches, strict=True):
        for field in fields(batch):
            value, found = getattr(batch, field.name), getattr(again, field.name)
            if isinstance(value, Tensor):
                assert torch.equal(value, found), field.name
                assert value.dtype == found.dtype
        assert batch.keys == again.keys
        for group, same in zip(batch.pictures, again.pictures, strict=True):
            assert torch.equal(group.pixels, same.pixels)
            assert torch.equal(group.rows, same.rows)


def test_processes_give_the_batches_of_threads_also_when_a_run_is_taken_up() -> None:
    with opened(worlds(), PACK, CONFIG) as threads:
        expected = [threads.next_step() for _ in range(5)]
        report = threads.report()
    with opened(worlds(), PACK, replace(CONFIG, processes=2, ahead=2)) as processes:
        for step in expected:
            assert_same(processes.next_step(), step)
        assert processes.report() == report
        # The same loader goes back into the middle of a window, and draws its documents again.
        processes.load_state_dict(expected[1].state)
        for step in expected[2:]:
            assert_same(processes.next_step(), step)


@pytest.mark.parametrize("by", ["samples", "tokens"])
def test_processes_leave_out_and_count_what_threads_do(by: str) -> None:
    sources = [Numbers("a", 40), Numbers("b", 90)]
    config = replace(CONFIG, by=by, max_broken_share=0.2)
    with opened(sources, keys, config) as threads:
        expected = [threads.next_step() for _ in range(9)]
        report = threads.report()
    with opened(sources, keys, replace(config, processes=1)) as processes:
        found = [processes.next_step() for _ in range(9)]
        assert found == expected
        assert processes.report() == report
    assert set(report["skipped"]) == {"truncated shard", "filtered", "corrupt picture"}


def test_a_bug_and_a_dead_worker_stop_the_run_with_their_reason() -> None:
    config = replace(CONFIG, processes=1, max_broken_share=0.5)
    with opened([Numbers("buggy", 90)], keys, config) as each, \
         pytest.raises(RuntimeError, match="a bug"):  # fmt: skip
        for _ in range(9):
            each.next_step()
    with opened([Numbers("deadly", 90)], keys, config) as each, \
         pytest.raises(NextStepError, match="worker process of the loader has ended"):  # fmt: skip
        for _ in range(9):
            each.next_step()


def test_what_cannot_be_sent_is_refused_before_anything_starts() -> None:
    with pytest.raises(NextStepError, match="set processes to 0"):
        Loader([Numbers("a", 9)], [1.0], lambda rows: rows, replace(CONFIG, processes=1))
    with pytest.raises(NextStepError, match="processes must be at least 0"):
        replace(CONFIG, processes=-1)


def test_tensors_of_every_shape_and_type_arrive_as_they_were(tmp_path: Any) -> None:
    sent = [
        torch.randn(3, 5),
        torch.randn(4, 6).t(),
        torch.randn(2, 3).bfloat16(),
        torch.empty(0, 7),
        torch.tensor(5),
        torch.tensor([True, False]),
    ]
    found = unpacked(pickle.loads(pickle.dumps(packed(sent, tmp_path / "tensors"))))
    assert not list(tmp_path.iterdir()), "nothing lies there any longer"
    for one, other in zip(sent, found, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert torch.equal(one, other)
    found[0].add_(1)
    assert unpacked(packed(["no tensors", 1], tmp_path / "none")) == ["no tensors", 1]
