"""The order of an epoch as a pure function, without a list of it.

Any place of any epoch can be asked for at once, by any process, so a run can be taken up again on
another number of workers or ranks and sees the same samples in the same order.
"""

from __future__ import annotations

from math import isqrt

from nextstep.data.documents import derived_seed

ROUNDS = 8
_MASK = (1 << 64) - 1


def permuted(place: int, length: int, key: int) -> int:
    """Where `place` goes in the permutation of range(length) that `key` names.

    A Feistel network over pairs (left, right) of a rectangle that just holds `length` cells; a
    result outside is sent through again until it falls inside (cycle walking; Black and Rogaway
    2002, "Ciphers with arbitrary finite domains"). Memory and time do not grow with `length`.

    Raises:
        ValueError: when the place is not in range(length).
    """
    if not 0 <= place < length:
        raise ValueError(f"place {place} is not within an order of {length}")
    width = isqrt(length - 1) + 1  # with the height, the smallest nearly square rectangle
    height = -(-length // width)
    while True:
        left, right = divmod(place, width)
        for turn in range(ROUNDS):
            if turn % 2:
                left = (left + _mix(key + turn, right)) % height
            else:
                right = (right + _mix(key + turn, left)) % width
        place = left * width + right
        if place < length:
            return place


def epoch_index(seed: int, name: str, epoch: int, place: int, length: int) -> int:
    """Sample that stands at `place` of an epoch of the set `name`.

    Args:
        seed: of the run.
        name: of the set, so that sets of one length do not walk in step.
        epoch: counted from 0; every epoch has an order of its own.
        place: 0 .. length-1.
        length: samples in the set.
    """
    return permuted(place, length, derived_seed("order", seed, name, epoch))


def _mix(key: int, value: int) -> int:
    """64 well-mixed bits (the finaliser of splitmix64; Steele, Lea and Flood 2014)."""
    z = (key + (value + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
