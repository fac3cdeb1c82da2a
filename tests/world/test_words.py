"""The vocabulary that the world writes for a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.text.tokenizer import TextTokenizer
from nextstep.text.vocabulary import SHEET, Vocabulary
from nextstep.world.drawings import atlas
from nextstep.world.editions import edition
from nextstep.world.lexicon import world_objects
from nextstep.world.live import WorldSource
from nextstep.world.singles_source import SingleEdits, Singles
from nextstep.world.vocabulary import OBJECTS
from nextstep.world.words import COLUMNS, SIDE, _table, pictured, vocabulary_of, world_vocabulary


def test_every_synonym_is_of_an_object_and_stands_for_one_alone() -> None:
    named = [name for name, _ in _table()]
    assert len(set(named)) == len(named)
    assert not [name for name in named if name not in world_objects()]
    words = world_vocabulary(tuple(world_objects()))
    assert len(words.names) == 300
    for name, others in words.names.items():
        assert words.prompt(name).text == name
        for other in others:
            assert not words.prompt(other).warnings, other


def test_everyday_words_and_plurals_mean_the_object_that_was_taught() -> None:
    words = world_vocabulary()
    for label in OBJECTS:
        obj = world_objects()[label]
        for said in (obj.word, obj.plural, obj.one, label):
            assert words.prompt(said).text in (label, said)
            assert not words.prompt(said).warnings


def test_folder_holds_a_drawing_of_every_name(tmp_path: Path) -> None:
    names = OBJECTS[:14]
    pictured(world_vocabulary(names)).save(tmp_path)
    own = Vocabulary.of_folder(tmp_path)
    assert own is not None and own.sheet is not None and tuple(own.names) == names
    assert (own.sheet.side, own.sheet.columns) == (SIDE, COLUMNS)
    assert own.sheet.webp == (tmp_path / SHEET).read_bytes()
    with Image.open(tmp_path / SHEET) as sheet:
        assert sheet.size == (SIDE * COLUMNS, SIDE * 2)
        cell = np.asarray(sheet.convert("RGB"))[SIDE:, SIDE : 2 * SIDE].astype(int)
    drawing = atlas().drawing(names[13], "noto")
    drawing.thumbnail((SIDE - 8, SIDE - 8), Image.Resampling.LANCZOS)
    wanted = Image.new("RGB", (SIDE, SIDE), "white")
    wanted.paste(drawing, ((SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2), drawing)
    assert np.abs(cell - np.asarray(wanted)).mean() < 6


@pytest.mark.parametrize("wrong", [
    {"names": ("dodo",)}, {"names": ()}, {"styles": ("oil",)}, {"colours": ("teal",)},
])  # fmt: skip
def test_what_the_world_does_not_have_is_refused(wrong: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(NextStepError, match="the world has no"):
        world_vocabulary(**wrong)  # type: ignore[arg-type]


def test_narrow_and_wide_sources_have_words_of_their_own(
    text_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextstep.world.words.TEXTS", 300)
    core = vocabulary_of([Singles(text_tokenizer), SingleEdits(text_tokenizer)])
    assert tuple(core.names) == OBJECTS
    assert "and" not in core.words
    whole = vocabulary_of([WorldSource(text_tokenizer, tasks=["two_objects"])])
    assert len(whole.names) == 300
    assert not whole.prompt("a dog and a zebra").warnings
    assert core.prompt("a dog and a zebra").warnings
    narrow = vocabulary_of([WorldSource(text_tokenizer, tasks=["single"], edition="core-48")])
    assert tuple(narrow.names) == edition("core-48").objects
    assert (tuple(narrow.styles), "red" in narrow.colours) == (("noto", "mono"), False)
