"""Mixing sources by samples and by tokens."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextstep.data.mixing import Mixture, whole_shares
from nextstep.errors import NextStepError
from tests.data.made_up import NumberSource


def sources(*lengths: int) -> list[NumberSource]:
    return [NumberSource("abcdefgh"[n], length) for n, length in enumerate(lengths)]


def deal(mixture: Mixture, count: int, tokens: int = 1) -> list[int]:
    dealt = []
    for _ in range(count):
        draw = mixture.draw()
        mixture.count(draw.source, tokens)
        dealt.append(draw.source)
    return dealt


def test_weights_become_the_smallest_whole_shares() -> None:
    assert whole_shares([20, 40, 10, 30]) == [2, 4, 1, 3]
    assert whole_shares([0.2, 0.6, 0.0, 0.2]) == [1, 3, 0, 1]
    assert whole_shares([0.1, 0.7]) == [1, 7]
    for bad in ([0.0, 0.0], [-1.0, 2.0], [float("nan")], [float("inf")], []):
        with pytest.raises(NextStepError, match="weights of sources"):
            whole_shares(bad)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), st.integers(0, 50))
def test_the_ratio_is_exact_over_every_window(weights: list[int], start: int) -> None:
    mixture = Mixture(sources(*[7] * len(weights)), weights)
    window = sum(whole_shares(weights))
    dealt = deal(mixture, start + 2 * window)
    for first in range(start, start + window + 1):
        counts = Counter(dealt[first : first + window])
        assert [counts[n] for n in range(len(weights))] == mixture.shares


def test_no_source_runs_ahead_of_its_share() -> None:
    mixture = Mixture(sources(5, 5, 5, 5), [0.2, 0.6, 0.1, 0.1])
    counts = [0] * 4
    for n, source in enumerate(deal(mixture, 500), start=1):
        counts[source] += 1
        for count, share in zip(counts, (0.2, 0.6, 0.1, 0.1), strict=True):
            assert abs(count - share * n) < 1.5


@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(0, 10**6))
def test_tokens_stay_within_a_document_of_their_share(weights: list[int], seed: int) -> None:
    rng, longest = random.Random(seed), 400
    mixture = Mixture(sources(*[5] * len(weights)), weights, by="tokens")
    for _ in range(300):
        draw = mixture.draw()
        # The first source's documents are long, as plain text is beside captions.
        mixture.count(draw.source, rng.randint(200, longest) if draw.source == 0 else 20)
        total = sum(mixture.tokens)
        for found, weight in zip(mixture.tokens, weights, strict=True):
            assert abs(found - total * weight / sum(weights)) <= longest


def test_each_epoch_shows_every_sample_once() -> None:
    mixture = Mixture(sources(6, 4), [1, 1], seed=5)
    seen: dict[tuple[int, int], list[int]] = {}
    seeds = set()
    for _ in range(48):
        draw = mixture.draw()
        mixture.count(draw.source, 1)
        seen.setdefault((draw.source, draw.epoch), []).append(draw.index)
        seeds.add(draw.seed)
    assert sorted(seen) == [(0, e) for e in range(4)] + [(1, e) for e in range(6)]
    assert all(sorted(order) == list(range((6, 4)[source])) for (source, _), order in seen.items())
    assert len({tuple(order) for (source, _), order in seen.items() if source == 0}) > 1
    assert len(seeds) == 48


def test_a_draw_that_is_not_used_is_made_up_for_from_its_own_source() -> None:
    mixture = Mixture(sources(5, 5), [1, 3])
    used: Counter[int] = Counter()
    for n in range(300):
        draw = mixture.draw()
        if n % 3:  # every third draw is left out
            mixture.count(draw.source, 1)
            used[draw.source] += 1
    assert used == {0: 50, 1: 150}


@pytest.mark.parametrize("by", ["samples", "tokens"])
def test_state_is_small_plain_and_goes_on(by: str) -> None:
    def fresh() -> Mixture:
        return Mixture(sources(5, 9, 3), [0.2, 0.5, 0.3], by=by, seed=1)  # type: ignore[arg-type]

    whole, half = fresh(), fresh()
    expected = [(whole.draw(), whole.count(i % 3, 3 + i))[0] for i in range(40)]
    first = [(half.draw(), half.count(i % 3, 3 + i))[0] for i in range(17)]
    state = json.dumps(half.state_dict())
    assert len(state) < 500
    resumed = fresh()
    resumed.load_state_dict(json.loads(state))
    rest = [(resumed.draw(), resumed.count(i % 3, 3 + i))[0] for i in range(17, 40)]
    assert first + rest == expected
    assert resumed.used() == whole.used()


def test_a_state_of_other_data_is_refused() -> None:
    state = Mixture(sources(5, 9), [1, 1]).state_dict()
    with pytest.raises(NextStepError, match=r"lengths = \[5, 9\]"):
        Mixture(sources(5, 8), [1, 1]).load_state_dict(state)
    with pytest.raises(NextStepError, match="shares"):
        Mixture(sources(5, 9), [1, 2]).load_state_dict(state)
    with pytest.raises(NextStepError, match="seed"):
        Mixture(sources(5, 9), [1, 1], seed=1).load_state_dict(state)


def test_mixes_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(NextStepError, match="share a name"):
        Mixture([NumberSource("a", 1), NumberSource("a", 1)], [1, 1])
    with pytest.raises(NextStepError, match="as many weights"):
        Mixture(sources(1, 1), [1])
    with pytest.raises(NextStepError, match="source b has no samples"):
        Mixture(sources(1, 0), [1, 1])
    with pytest.raises(NextStepError, match="by samples or by tokens"):
        Mixture(sources(1), [1], by="bytes")  # type: ignore[arg-type]
    assert deal(Mixture(sources(1, 0), [1, 0]), 3) == [0, 0, 0]
