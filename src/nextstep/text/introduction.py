"""What a small model says of itself where a request holds nothing that it was taught."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from nextstep.text.vocabulary import PromptWarning, Vocabulary, checked_prompts
from nextstep.text.wording import WORD

LONGEST = 5
"""Words of an object's name that are looked up together."""


def objects_in(own: Vocabulary, text: str) -> list[str]:
    """Names of the objects that a text speaks of, in its order; the longest names first."""
    words = WORD.findall(text.lower())
    found: list[str] = []
    place = 0
    while place < len(words):
        for count in range(min(LONGEST, len(words) - place), 0, -1):
            name = own.name_of(" ".join(words[place : place + count]))
            if name is not None:
                found.append(name)
                place += count
                break
        else:
            place += 1
    return found


def introduction(own: Vocabulary, model: str) -> str:
    """What the model is, and what it can be asked for."""
    names = list(own.names)
    some = ", ".join(names[:: max(1, len(names) // 6)][:6])
    said = [
        f"{model} draws, edits and reads pictures, and does not converse.",
        f"It knows {len(names)} objects by name, such as {some}.",
    ]
    if own.examples:
        said.append(f'Ask for a picture, such as "{own.examples[0]}".')
    said.append("Or give it a picture and a question about it.")
    return " ".join(said)


def check_conversation(own: Vocabulary | None, parts: Sequence[object]) -> None:
    """Warn of words that a model was not taught; say what it can do where it knows nothing of them.

    Args:
        own: of the model; None takes any text.
        parts: texts, and pictures of any kind.
    """
    texts = [part for part in parts if isinstance(part, str) and part.strip()]
    if own is None or not texts:
        return
    if len(texts) == len(parts) and not any(objects_in(own, text) for text in texts):
        warnings.warn(introduction(own, "this model"), PromptWarning, stacklevel=3)
    else:
        checked_prompts(own, texts, Vocabulary.instruction)
