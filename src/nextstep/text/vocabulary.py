"""What a small model was taught to draw, and prompts put into its words.

A model folder may hold `vocabulary.json`: names of objects with their synonyms, drawing styles,
background colours, and every word of its training texts. A prompt is then read against it: case,
articles and plurals are settled, synonyms and emoji become the names that the model knows, and
words that it never saw are warned about, with the nearest ones that it did see.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nextstep.errors import ModelFileError
from nextstep.text.wording import (
    QUOTED,
    WORD,
    Colour,
    apart,
    by_synonym,
    emoji_spelled,
    emoji_words,
    is_symbol,
    singulars,
    taken,
)
from nextstep.utils.files import read_json, write_json

FILE = "vocabulary.json"
SHEET = "vocabulary.webp"
VERSION = 1
MOST_WARNINGS = 6
"""Words that one prompt is warned about."""
LONGEST_NAME = 60
"""Letters of a name or a word that is looked up, and shown."""

_TAG = re.compile(r"<image(?:_\d+)?>")
_ARTICLE = re.compile(r"^(?:a|an|the|one|some|my)\s+")
_LEAD = re.compile(
    r"^(?:please\s+)?(?:(?:draw|paint|show|make|create|generate)\s+(?:me\s+)?)?"
    r"(?:(?:a|an|the)\s+)?(?:(?:picture|drawing|image|photo|painting|emoji|icon)\s+of\s+)?"
)
_BEFORE_STYLE = r"(?:,\s*|\b(?:drawn\s+)?in\s+(?:a\s+|an\s+|the\s+)?|^)?"
_BEFORE_COLOUR = r"(?:,\s*|\b(?:on|against|with|over)\s+(?:a\s+|an\s+|the\s+)?|^)?"


class PromptWarning(UserWarning):
    """A prompt holds something that the model was not taught."""


@dataclass(frozen=True)
class CheckedPrompt:
    """A prompt as the model is given it.

    Attributes:
        text: in the model's words.
        given: as it was asked for.
        warnings: one sentence for everything that the model was not taught.
    """

    text: str
    given: str
    warnings: tuple[str, ...] = ()

    def record(self) -> dict[str, str]:
        """What a picture's settings say about the change; nothing where there was none."""
        return {"prompt_given": self.given} if self.given != self.text else {}


@dataclass(frozen=True)
class _Caption:
    """One object with its style and background, each as the prompt says it.

    `bare` when the style stands before the object without the word "style".
    """

    subject: str
    style: str = ""
    colour: str = ""
    bare: bool = False


@dataclass(frozen=True)
class Sheet:
    """Pictures of the names in their order.

    Attributes:
        side: of one picture in pixels.
        columns: pictures in a row.
        webp: contents of the file.
    """

    side: int
    columns: int
    webp: bytes = b""


@dataclass(frozen=True)
class Vocabulary:
    """The words of a model.

    Attributes:
        names: objects as the model was taught them, with other words for each.
        styles: drawing styles, with other words for each.
        colours: background colours, sRGB.
        colour_synonyms: other words for colours.
        words: of the training texts as they were written there.
        examples, edits: prompts and instructions that work.
        notes: what is to be known about a task, by its name: story, world, read.
        sheet: what `vocabulary.webp` shows; None without one.
    """

    names: Mapping[str, tuple[str, ...]]
    styles: Mapping[str, tuple[str, ...]]
    colours: Mapping[str, Colour]
    colour_synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    words: frozenset[str] = frozenset()
    examples: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    sheet: Sheet | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> Vocabulary | None:
        """That of a model folder; None when it has none.

        Raises:
            ModelFileError: when the file is damaged.
        """
        path = folder / FILE
        if not path.exists():
            return None
        raw, sheet = read_json(path), folder / SHEET
        try:
            own = cls.from_dict(raw)
            if own.sheet is None or not sheet.exists():
                return replace(own, sheet=None)
            return replace(own, sheet=replace(own.sheet, webp=sheet.read_bytes()))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(f"{path} is damaged: {error}") from None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Vocabulary:
        """What `to_dict` wrote.

        Raises:
            ValueError: for another version, or values of another kind.
        """
        if raw["version"] != VERSION:
            raise ValueError(f"version {raw['version']!r} is unknown, {VERSION} is read")
        colours = {name: _colour(one["rgb"]) for name, one in raw["colours"].items()}
        sheet = raw["sheet"]
        return cls(
            _listed(raw["names"]),
            _listed(raw["styles"]),
            colours,
            _listed({n: one["synonyms"] for n, one in raw["colours"].items() if one["synonyms"]}),
            frozenset(_texts(raw["words"])),
            _texts(raw["examples"]),
            _texts(raw["edits"]),
            {str(task): str(note) for task, note in raw["notes"].items()},
            None if sheet is None else Sheet(int(sheet["side"]), int(sheet["columns"])),
        )

    def to_dict(self) -> dict[str, Any]:
        """What vocabulary.json holds."""
        return {
            "version": VERSION,
            "names": {name: list(others) for name, others in self.names.items()},
            "styles": {name: list(others) for name, others in self.styles.items()},
            "colours": {
                name: {"rgb": list(rgb), "synonyms": list(self.colour_synonyms.get(name, ()))}
                for name, rgb in self.colours.items()
            },
            "words": sorted(self.words),
            "examples": list(self.examples),
            "edits": list(self.edits),
            "notes": dict(self.notes),
            "sheet": self.sheet and {"side": self.sheet.side, "columns": self.sheet.columns},
        }

    def save(self, folder: Path) -> None:
        """Write vocabulary.json, and vocabulary.webp where there are pictures."""
        if self.sheet is not None:
            (folder / SHEET).write_bytes(self.sheet.webp)
        write_json(folder / FILE, self.to_dict())

    def prompt(self, given: str) -> CheckedPrompt:
        """A prompt of a picture in the model's words. Read twice it stays what it is."""
        if "\n" in given.strip():
            return self._first_line(given, self.prompt)
        if not given.strip():
            return CheckedPrompt(given, given, ("the prompt is empty: the model draws anything",))
        plain = emoji_spelled(" ".join(given.split()), self._emoji)
        caption = self._caption(plain.lower().rstrip(".!?"))
        name = self.name_of(caption.subject)
        if name is None:
            text = self._own_words(plain)
            return CheckedPrompt(text, given, tuple(self._unknown(text)))
        style = self._style_word(caption.style)
        colour = self._colour_word(caption.colour)
        same = (name.lower(), style, colour) == (caption.subject, caption.style, caption.colour)
        small = plain.replace(name, name.lower()) == plain.lower()
        if (
            same
            and small
            and not caption.bare
            and all(word in self._known for word in WORD.findall(plain))
        ):
            text = plain
        else:
            look = [f"{style} style" if style else "", f"{colour} background" if colour else ""]
            text = ", ".join([name, *filter(None, look)])
        return CheckedPrompt(text, given, tuple(self._unknown_look(caption)))

    def instruction(self, given: str) -> CheckedPrompt:
        """An edit's instruction in the model's words. Read twice it stays what it is."""
        if "\n" in given.strip():
            return self._first_line(given, self.instruction)
        if not given.strip():
            return CheckedPrompt(given, given, ("the instruction is empty: nothing is asked for",))
        text = self._own_words(emoji_spelled(" ".join(given.split()), self._emoji))
        words = self._unknown_words(text)[:MOST_WARNINGS]
        return CheckedPrompt(text, given, tuple(self._warning(word) for word in words))

    @staticmethod
    def _first_line(given: str, read: Callable[[str], CheckedPrompt]) -> CheckedPrompt:
        """The first line in the model's words; below it stands what it says of the picture."""
        first, _, rest = given.strip().partition("\n")
        made = read(first)
        return CheckedPrompt(f"{made.text}\n{rest}", given, made.warnings)

    def nearest(self, said: str) -> list[str]:
        """Names that are spelled like `said`, or share a word with it; at most three."""
        words = set(WORD.findall(said)) - {"face", "of"}
        sharing = [name for name in self.names if words & set(WORD.findall(name))]
        return list(dict.fromkeys([*self._close(said), *sharing]))[:3]

    def _close(self, said: str) -> list[str]:
        """Names that are spelled like it."""
        if len(said) > LONGEST_NAME:
            return []
        close = difflib.get_close_matches(said, list(self._synonyms), 3, 0.7)
        return [self._synonyms[one] for one in close]

    def nearest_colour(self, said: str) -> str | None:
        """The colour that looks most like one that CSS knows by a name; None for other words."""
        from PIL import ImageColor

        if not self.colours or said.replace(" ", "") not in ImageColor.colormap:
            return None
        wanted = ImageColor.getrgb(said.replace(" ", ""))[:3]
        return min(self.colours, key=lambda name: apart(self.colours[name], wanted))

    @cached_property
    def _synonyms(self) -> dict[str, str]:
        """Every word for an object -> its name; names themselves win."""
        return {**by_synonym(self.names), **{name.lower(): name for name in self.names}}

    @cached_property
    def _style_words(self) -> dict[str, str]:
        return {**by_synonym(self.styles), **{name: name for name in self.styles}}

    @cached_property
    def _colour_words(self) -> dict[str, str]:
        return {**by_synonym(self.colour_synonyms), **{name: name for name in self.colours}}

    @cached_property
    def _known(self) -> frozenset[str]:
        """Words that the model has read."""
        own = " ".join([*self.names, *self.styles, *self.colours, "style background"])
        return self.words | frozenset(WORD.findall(own))

    def _caption(self, text: str) -> _Caption:
        """The parts of a description of one object; all else is its subject."""
        text, style = taken(text, _BEFORE_STYLE, self._style_words, "style")
        text, colour = taken(text, _BEFORE_COLOUR, self._colour_words, "background|backdrop")
        subject = _ARTICLE.sub("", _LEAD.sub("", text.strip(" ,;:")))
        first, _, rest = subject.partition(" ")
        bare = not style and first in self._style_words and self.name_of(rest) is not None
        if bare:
            style, subject = first, rest
        return _Caption(subject.strip(" ,;:"), style, colour, bare)

    def name_of(self, subject: str) -> str | None:
        """The name of an object by any word for it, singular or plural."""
        for form in (subject, *singulars(subject)):
            if form in self._synonyms:
                return self._synonyms[form]
        return None

    def _style_word(self, said: str) -> str:
        return self._style_words.get(said, said)

    def _colour_word(self, said: str) -> str:
        return self._colour_words.get(said, said)

    @cached_property
    def _emoji(self) -> dict[str, str]:
        return emoji_words(self.names)

    def _own_words(self, text: str) -> str:
        """Words in the case that the model knows, colours and styles by its own words for them."""

        def own(found: re.Match[str]) -> str:
            word, small = found[0], found[0].lower()
            if word in self._known:
                return word
            if small in self._known:
                return small
            return self._colour_words.get(small) or self._style_words.get(small) or word

        pieces = QUOTED.split(text)
        # What stands in quotation marks is to be written on a sign, letter by letter.
        return "".join(one if one[:1] == '"' else WORD.sub(own, one) for one in pieces)

    def _unknown_words(self, text: str) -> list[str]:
        """The words, emoji and other symbols that the model has not read, once each."""
        plain = _TAG.sub(" ", QUOTED.sub(" ", text))
        symbols = [letter for letter in plain if is_symbol(letter)]
        words = [word for word in WORD.findall(plain) if word not in self._known]
        return list(dict.fromkeys([*words, *symbols]))

    def _unknown(self, text: str) -> list[str]:
        """What is wrong with a prompt of no known object."""
        caption = self._caption(text.lower().rstrip(".!?"))
        look = self._unknown_look(caption)
        words = self._unknown_words(text)
        if words and self._close(caption.subject):
            return [self._warning(caption.subject), *look]
        told = set(WORD.findall(f"{caption.style} {caption.colour}")) if look else set()
        return [*(self._warning(w) for w in words[:MOST_WARNINGS] if w not in told), *look]

    def _unknown_look(self, caption: _Caption) -> list[str]:
        """What is wrong with the style and the background."""
        found = []
        if caption.style and caption.style not in self._style_words:
            found.append(
                f"this model was not taught the style '{caption.style}'; it knows "
                f"{', '.join(self.styles)}"
            )
        if caption.colour and caption.colour not in self._colour_words:
            near = self.nearest_colour(caption.colour)
            hint = f"; nearest is '{near}'" if near else f"; it knows {', '.join(self.colours)}"
            found.append(f"this model was not taught the background '{caption.colour}'{hint}")
        return found

    def _warning(self, said: str) -> str:
        colour = self.nearest_colour(said.lower())
        near = [] if colour else self.nearest(said.lower())
        shown = said if len(said) <= LONGEST_NAME else said[: LONGEST_NAME - 3] + "..."
        hint = f"; the nearest colour is '{colour}'" if colour else ""
        hint = f"; nearest: {', '.join(repr(one) for one in near)}" if near else hint
        return f"this model was not taught '{shown}'{hint}"


def checked_prompts(
    own: Vocabulary | None,
    given: str | Sequence[str],
    read: Callable[[Vocabulary, str], CheckedPrompt],
) -> list[CheckedPrompt]:
    """Prompts in a model's words; a `PromptWarning` for all that it was not taught.

    Args:
        own: of the model; None leaves prompts as they are.
        given: one prompt or several.
        read: `Vocabulary.prompt` or `Vocabulary.instruction`.
    """
    texts = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"a prompt is a text, not {text!r}")
    worded = [CheckedPrompt(text, text) if own is None else read(own, text) for text in texts]
    for message in dict.fromkeys(message for one in worded for message in one.warnings):
        warnings.warn(message, PromptWarning, stacklevel=4)
    return worded


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise ValueError("a list of texts is something else")
    return tuple(values)


def _listed(raw: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {str(name): _texts(others) for name, others in raw.items()}


def _colour(values: Any) -> Colour:
    red, green, blue = (int(value) for value in values)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"{values} is no colour")
    return red, green, blue
