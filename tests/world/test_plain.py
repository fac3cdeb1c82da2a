"""Plain text: looking up, facts about objects, glosses of dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from nextstep.errors import NextStepError
from nextstep.world.descriptions import name_with_style
from nextstep.world.examples import Example, ImagePart, TextPart
from nextstep.world.tasks import examples
from nextstep.world.tasks.plain import common_colour, read_glosses


def test_comparisons_tell_the_one_difference() -> None:
    kinds = set()
    for one in examples("compare", count=50, edition="core-48"):
        for asked, answer in zip(one.parts[::2], one.parts[1::2], strict=True):
            assert isinstance(asked, TextPart) and isinstance(answer, TextPart)
            assert not asked.trained and answer.trained
            before, after = (
                {pair for pair in line.strip(" ;").split(", ") if pair != "none"}
                for line in asked.text.rstrip(";").split("; ")
            )
            gone, come = before - after, after - before
            told = answer.text.strip()
            if gone and come:
                assert told == f"{gone.pop()} becomes {come.pop()}"
            else:
                assert told == (f"{gone.pop()} goes" if gone else f"{come.pop()} comes")
            assert not gone and not come
            kinds.add(told.split()[-1] if told.endswith(("goes", "comes")) else "becomes")
    assert kinds == {"becomes", "goes", "comes"}


def test_lookups_ask_for_what_the_line_says() -> None:
    for one in examples("lookup", count=50, edition="core-48"):
        line, *asked = one.parts
        assert isinstance(line, TextPart) and not line.trained and line.text.endswith("\n")
        told = line.text.strip().split(", ")
        words, values = asked[::2], asked[1::2]
        assert len(values) >= 12
        for word, value in zip(words, values, strict=True):
            assert isinstance(word, TextPart) and isinstance(value, TextPart)
            assert not word.trained and value.trained
            if value.text == " none":
                assert not any(one.startswith(word.text.removeprefix(", ")) for one in told)
            else:
                assert f"{word.text.removeprefix(', ')}{value.text}" in told
        met = {w.text.removeprefix(", ") + v.text for w, v in zip(words, values, strict=True)}
        assert {pair for pair in met if not pair.endswith(" none")} == {*told}


def test_names_ask_for_everybody_once_in_another_order() -> None:
    in_order = 0
    for one in examples("names", count=40, edition="core-48"):
        pictures = [part for part in one.parts if isinstance(part, ImagePart)]
        texts = [part for part in one.parts if isinstance(part, TextPart)]
        met, asked = texts[: len(pictures)], texts[len(pictures) :]
        assert 4 <= len(pictures) == len(asked) / 2 <= 8
        assert not any(part.trained for part in met)
        order = []
        for name, told in zip(asked[::2], asked[1::2], strict=True):
            assert told.trained and not name.trained
            (place,) = [
                i for i, part in enumerate(met) if name.text.strip(", \n") in part.text.rstrip(".")
            ]
            assert told.text == f" {name_with_style(pictures[place].scene.items[0])}"
            order.append(place)
        assert sorted(order) == [*range(len(pictures))]
        in_order += order == sorted(order)
    assert in_order < 10


def test_steps_are_harder_next_states() -> None:
    hard, usual = (examples(task, count=80, edition="core-48") for task in ("steps", "next_state"))
    shares: list[Callable[[Example], bool]] = [
        lambda one: len(one.scenes[0].items) == 3,
        lambda one: any(
            sum(a != b for a, b in zip(x.items, y.items, strict=False)) > 1
            for x, y in pairwise(one.scenes)
        ),
        lambda one: any(x == y for x, y in zip(one.scenes, one.scenes[2:], strict=False)),
    ]
    for share in shares:
        assert sum(map(share, hard)) > 1.3 * sum(map(share, usual))


def test_plain_text(tmp_path: Path) -> None:
    assert common_colour("lemon") == "yellow"
    assert common_colour("rainbow") is None
    lines = tmp_path / "lines.txt"
    lines.write_text("dog: a tame animal.\n\ncat: another.\n")
    assert read_glosses(lines) == ("dog: a tame animal.", "cat: another.")
    folder = tmp_path / "wordnet"
    folder.mkdir()
    (folder / "data.noun").write_text(
        "  1 This text stands before the synsets | and is no gloss\n"
        '00001740 03 n 01 hot_dog 0 001 @ 00001930 n 0000 | a sausage; in a roll; "ate a hot dog"\n'
    )
    assert read_glosses(folder) == ("hot dog: a sausage; in a roll.",)
    with pytest.raises(NextStepError, match="cannot be read as text"):
        read_glosses(tmp_path / "none")
