"""The loader: one order for every number of ranks, broken samples, states."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextstep.data.documents import Document
from nextstep.data.loader import Loader, LoaderConfig, Row
from nextstep.data.planning import one_per_row
from nextstep.data.steps import Step
from nextstep.errors import NextStepError
from tests.data.made_up import NumberSource

CONFIG = LoaderConfig(row_length=64, rows_per_step=6, window_rows=5, workers=2)


def names(rows: list[Row]) -> list[list[str]]:
    """A micro-batch as the names in it."""
    return [[document.key for document, _ in row] for row in rows]


def mixed() -> list[NumberSource]:
    return [
        NumberSource("text", 40, lambda i: 20 + i, with_picture=False),
        NumberSource("pairs", 90, lambda i: 5 + i % 13),
        NumberSource("edits", 30, lambda i: 17),
    ]


def loader(
    config: LoaderConfig = CONFIG,
    rank: int = 0,
    world: int = 1,
    sources: list[NumberSource] | None = None,
    batch_of: Callable[[list[Row]], Any] = names,
    **options: Any,
) -> Loader:
    sources = mixed() if sources is None else sources
    weights = [0.2, 0.6, 0.2][: len(sources)]
    return Loader(sources, weights, batch_of, config, rank=rank, world=world, **options)


def rows_of(steps: list[Step]) -> list[list[str]]:
    """Rows of one step from all ranks' parts of it, in the global order."""
    per_rank = [[row for batch in step.batches for row in batch] for step in steps]
    return [row for rows in itertools.zip_longest(*per_rank, fillvalue=[]) for row in rows]


def run(ranks: list[Loader], steps: int) -> list[list[list[str]]]:
    return [rows_of([each.next_step() for each in ranks]) for _ in range(steps)]


def filled(steps: list[list[list[str]]]) -> list[list[str]]:
    return [row for step in steps for row in step if row]


@pytest.mark.parametrize("by", ["samples", "tokens"])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_order_is_one_for_every_number_of_ranks(world: int, by: str) -> None:
    config = replace(CONFIG, by=by, micro_batch_rows=2)
    alone = run([loader(config)], 8)
    together = run([loader(config, rank, world) for rank in range(world)], 8)
    assert filled(together) == filled(alone)
    assert len(filled(alone)) == 8 * 6


@given(
    worlds=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    stops=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    by=st.sampled_from(["samples", "tokens"]),
)
@settings(max_examples=12)
def test_a_resume_on_other_ranks_goes_on_in_the_same_order(
    worlds: list[int], stops: list[int], by: str
) -> None:
    config = replace(CONFIG, by=by)
    expected = run([loader(config)], 16)
    state = loader(config).state_dict()
    found: list[list[list[str]]] = []
    for world, steps in zip(worlds, stops, strict=False):
        ranks = [loader(config, rank, world) for rank in range(world)]
        for each in ranks:
            each.load_state_dict(json.loads(json.dumps(state)))
        found += run(ranks, steps)
        states = [each.state_dict() for each in ranks]
        assert all(other == states[0] for other in states)
        state = states[0]
    assert filled(found) == filled(expected[: len(found)])


def test_the_state_of_a_step_is_that_after_it_whatever_is_prepared() -> None:
    whole = loader(replace(CONFIG, ahead=5))
    expected = [whole.next_step() for _ in range(9)]
    for done in (0, 3, 8):
        resumed = loader(replace(CONFIG, ahead=0))
        if done:
            resumed.load_state_dict(expected[done - 1].state)
        rest = [resumed.next_step().keys for _ in range(9 - done)]
        assert rest == [step.keys for step in expected[done:]]
    assert whole.state_dict() == expected[-1].state
    assert len(json.dumps(whole.state_dict())) < 1500


def test_a_loader_can_go_back_to_an_earlier_state() -> None:
    each = loader()
    start = each.state_dict()
    first = [each.next_step().keys for _ in range(4)]
    each.load_state_dict(start)
    assert [each.next_step().keys for _ in range(4)] == first


def test_the_number_of_rows_a_step_may_change_on_resume() -> None:
    expected = filled(run([loader()], 8))
    half = loader()
    begun = filled(run([half], 4))
    resumed = loader(replace(CONFIG, rows_per_step=3))
    resumed.load_state_dict(half.state_dict())
    assert begun + filled(run([resumed], 8)) == expected


def test_every_document_comes_once_an_epoch_and_no_row_is_too_long() -> None:
    source = NumberSource("pairs", 50, lambda i: 5 + i)
    lengths = {f"pairs/{i}": 5 + i for i in range(50)}
    found = filled(run([loader(sources=[source])], 20))
    assert all(sum(lengths[key] for key in row) <= 64 for row in found)
    flat = [key for row in found for key in row]
    counts = [flat.count(key) for key in lengths]
    # Rows are taken out of windows, so an epoch's edge is blurred by a window at most.
    assert max(counts) - min(counts) <= 2
    assert min(counts) >= 4


def test_ranks_have_as_many_micro_batches_of_one_size() -> None:
    config = replace(CONFIG, rows_per_step=7, micro_batch_rows=2)
    steps = [loader(config, rank, 3).next_step() for rank in range(3)]
    assert [[len(batch) for batch in step.batches] for step in steps] == [[2, 2]] * 3
    assert sum(bool(row) for step in steps for batch in step.batches for row in batch) == 7


@pytest.mark.parametrize(("world", "sizes"), [(1, [6]), (2, [3]), (3, [2]), (4, [2])])
def test_no_rank_computes_rows_that_it_does_not_have(world: int, sizes: list[int]) -> None:
    config = replace(CONFIG, rows_per_step=6, micro_batch_rows=6)
    steps = [loader(config, rank, world).next_step() for rank in range(world)]
    assert [[len(batch) for batch in step.batches] for step in steps] == [sizes] * world


def test_weights_hold_over_what_is_trained_on() -> None:
    each = loader()
    for _ in range(40):
        each.next_step()
    used = {name: entry["samples"] for name, entry in each.report()["sources"].items()}
    total = sum(used.values())
    # Exact but for the documents of the window that is not used up.
    assert abs(used["text"] / total - 0.2) < 0.02
    assert abs(used["pairs"] / total - 0.6) < 0.02


def test_wide_windows_leave_little_padding() -> None:
    each = loader(replace(CONFIG, window_rows=32))
    for _ in range(40):
        each.next_step()
    assert 0 <= each.report()["padding"] < 0.02


def test_documents_wait_at_most_once() -> None:
    order = [key for row in filled(run([loader(sources=mixed()[1:2])], 30)) for key in row]
    drawn = [key for row in filled(run(
        [loader(sources=mixed()[1:2], pack=one_per_row)], 70)) for key in row]  # fmt: skip
    # The stream without packing is the order of draws; a window holds about 5 * 64 / 11 documents.
    places = [drawn.index(key) for key in order[:80]]
    assert all(abs(place - now) < 3 * 40 for now, place in enumerate(places))


BAD = {f"pairs/{i}" for i in range(1000) if i % 250 in (7, 8, 9, 10)}


def thousand(broken: bool = True) -> NumberSource:
    def in_index(i: int) -> str | None:
        return {7: "truncated shard", 8: "wrong tag count"}.get(i % 250) if broken else None

    def in_picture(i: int) -> str | None:
        return {9: "corrupt picture", 10: "decompression bomb"}.get(i % 250) if broken else None

    return NumberSource("pairs", 1000, lambda i: 7, in_index, broken_pictures=in_picture)


@pytest.mark.parametrize("world", [1, 3])
def test_broken_samples_among_a_thousand_are_counted_and_named(world: int) -> None:
    ranks = [loader(rank=rank, world=world, sources=[thousand()]) for rank in range(world)]
    # A step takes 6 rows of 9 samples: once through all of them, and a little of the next epoch.
    found = [key for row in filled(run(ranks, 20)) for key in row]
    assert set(found) == {f"pairs/{i}" for i in range(1000)} - BAD
    skipped = [each.report()["skipped"] for each in ranks]
    for reason, remainder in (("truncated shard", 7), ("wrong tag count", 8)):
        wanted = {f"pairs/{i}" for i in range(remainder, 1000, 250)}
        assert all(set(s[reason]["first"]) == wanted for s in skipped), "every rank plans all"
        assert all(4 <= s[reason]["samples"] <= 8 for s in skipped)
    for reason, remainder in (("corrupt picture", 9), ("decompression bomb", 10)):
        named = [name for s in skipped for name in s.get(reason, {}).get("first", [])]
        assert set(named) == {f"pairs/{i}" for i in range(remainder, 1000, 250)}
        assert 4 <= sum(s.get(reason, {}).get("samples", 0) for s in skipped) <= 8
    assert all(0.005 < each.report()["broken_share"] < 0.03 for each in ranks)


def test_broken_samples_do_not_change_the_order_of_the_rest() -> None:
    def order(broken: bool) -> list[str]:
        steps = run([loader(sources=[thousand(broken)], pack=one_per_row)], 300)
        return [key for row in filled(steps) for key in row]

    good, rest = [key for key in order(broken=False) if key not in BAD], order(broken=True)
    length = min(len(good), len(rest))
    assert length > 1700
    assert rest[:length] == good[:length]


def test_a_broken_picture_leaves_a_hole_and_nothing_else_moves() -> None:
    def broken(i: int) -> str | None:
        return "corrupt picture" if i in (3, 40, 77) else None

    bad = {"pairs/3", "pairs/40", "pairs/77"}
    whole = run([loader(sources=[NumberSource("pairs", 90)])], 20)
    holes = run([loader(sources=[NumberSource("pairs", 90, broken_pictures=broken)])], 20)
    assert holes == [[[key for key in row if key not in bad] for row in step] for step in whole]
    assert holes != whole


def test_too_many_broken_samples_stop_the_run() -> None:
    def tenth(i: int) -> str | None:
        return "corrupt picture" if i % 10 == 0 else None

    for source in (
        NumberSource("pairs", 500, broken=tenth),
        NumberSource("pairs", 500, broken_pictures=tenth),
    ):
        with pytest.raises(NextStepError, match="max_broken_share"):
            run([loader(sources=[source])], 20)
        assert run([loader(replace(CONFIG, max_broken_share=0.2), sources=[source])], 20)


def test_few_broken_samples_are_no_share_yet() -> None:
    source = NumberSource("pairs", 50, broken=lambda i: "bad" if i in (4, 5) else None)
    config = replace(CONFIG, row_length=16, rows_per_step=1, window_rows=1, max_broken_share=0.01)
    assert run([loader(config, sources=[source])], 3)


def test_a_source_that_gives_nothing_is_named() -> None:
    sources = [NumberSource("good", 10), NumberSource("empty", 200, filtered=lambda i: True)]
    with pytest.raises(NextStepError, match=r"whole epoch of source empty .*filtered"):
        run([loader(sources=sources)], 3)


def test_documents_longer_than_a_row_and_filtered_ones_are_counted_apart() -> None:
    source = NumberSource(
        "pairs", 100, lambda i: 65 if i < 10 else 60, filtered=lambda i: 20 <= i < 50
    )
    each = loader(sources=[source])
    run([each], 10)
    report = each.report()
    assert 8 <= report["skipped"]["longer than a row"]["samples"] <= 30
    assert report["skipped"]["filtered"]["samples"] > 20
    assert report["broken_share"] == 0.0
    assert len(report["skipped"]["filtered"]["first"]) == 10


def test_nothing_depends_on_the_timing_of_threads() -> None:
    class Slow(NumberSource):
        def pictures(self, document: Document) -> list[np.ndarray]:
            time.sleep(random.random() / 300)
            return super().pictures(document)

    def shown(rows: list[Row]) -> Any:
        return [[(d.key, d.seed, int(p[0][0, 0, 0])) for d, p in row] for row in rows]

    quick = loader(sources=[NumberSource("pairs", 90)], batch_of=shown)
    expected = [quick.next_step() for _ in range(5)]
    for workers, ahead in ((1, 0), (8, 4)):
        config = replace(CONFIG, workers=workers, ahead=ahead)
        slow = loader(config, sources=[Slow("pairs", 90)], batch_of=shown)
        assert [slow.next_step() for _ in range(5)] == expected


def test_steps_are_prepared_ahead_and_only_own_rows_are_decoded() -> None:
    ready = threading.Event()
    decoded: list[str] = []

    class Watched(NumberSource):
        def pictures(self, document: Document) -> list[np.ndarray]:
            decoded.append(document.key)
            if len(decoded) > 70:
                ready.set()
            return super().pictures(document)

    each = loader(rank=1, world=3, sources=[Watched("pairs", 1000)])
    keys = each.next_step().keys
    # A step has 6 rows of 12 documents, a third of them this rank's; two steps come after it.
    assert ready.wait(10)
    assert len(decoded) <= 3 * 2 * 13
    assert set(keys) <= set(decoded)
    each.close()


def test_tokens_are_counted_without_padding() -> None:
    step = loader(sources=[NumberSource("pairs", 50, lambda i: 7)]).next_step()
    assert step.tokens == 7 * len(step.keys)
    assert len(step.keys) == 6 * (64 // 7)


def test_unexpected_errors_are_not_swallowed() -> None:
    class Buggy(NumberSource):
        def pictures(self, document: Document) -> list[np.ndarray]:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        loader(sources=[Buggy("pairs", 50)]).next_step()


def test_states_of_other_settings_are_refused() -> None:
    state = loader().state_dict()
    with pytest.raises(NextStepError, match="row_length = 64, and now it is 32"):
        loader(replace(CONFIG, row_length=32)).load_state_dict(state)
    with pytest.raises(NextStepError, match="seed = 0"):
        loader(replace(CONFIG, seed=1)).load_state_dict(state)
    with pytest.raises(NextStepError, match="names"):
        loader(sources=mixed()[:2]).load_state_dict(state)
    later = loader()
    run([later], 3)
    state = later.state_dict()
    with pytest.raises(NextStepError, match="the data it was saved with"):
        loader().load_state_dict({**state, "rows_taken": 99})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"row_length": 0}, "row_length must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"ahead": -1}, "ahead must be at least 0"),
        ({"max_broken_share": 5.0}, "max_broken_share is a share"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(NextStepError, match=message):
        replace(CONFIG, **values)
    with pytest.raises(NextStepError, match="rank 2 is not one of 2"):
        loader(rank=2, world=2)
