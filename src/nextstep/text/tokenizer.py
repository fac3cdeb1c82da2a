"""Text tokenizer: a thin wrapper over `tokenizers` that knows the special tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nextstep.config import NextStepConfig
from nextstep.errors import ModelFileError
from nextstep.utils.files import check_plain, read_json, write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE


END_OF_TEXT = "<|endoftext|>"
PAD = "[PAD]"
IMAGE_AREA = "<|image_area|>"
BEGIN_OF_IMAGE = "<|begin_of_image|>"
END_OF_IMAGE = "<|end_of_image|>"
IMAGE_PLACEHOLDER = "<|image_placeholder|>"

ADDED_TOKENS: tuple[str, ...] = (
    PAD,
    IMAGE_AREA,
    BEGIN_OF_IMAGE,
    END_OF_IMAGE,
    IMAGE_PLACEHOLDER,
    "<|begin_of_prompt_refinement|>",
    "<|end_of_prompt_refinement|>",
    "<|begin_of_thinking|>",
    "<|end_of_thinking|>",
    "<|beginoftext|>",
)
"""Ids 151665 to 151674 in the released models; the last came with 1.1."""

QWEN_TEXT_VOCABULARY = 151665
"""Ids of Qwen2.5's own text and special tokens; the added tokens follow."""


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens the grammar uses."""

    eos: int
    pad: int
    image_area: int
    begin_of_image: int
    end_of_image: int
    image_placeholder: int


class TextTokenizer:
    """Text to ids and back.

    Ids of special tokens are read from the vocabulary, never assumed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.backend = tokenizer

    @classmethod
    def from_folder(cls, folder: Path) -> TextTokenizer:
        """Read `tokenizer.json`, or the older vocab.json and merges.txt pair.

        Raises:
            FileNotFoundError: when the folder has neither.
            ValueError: when the file cannot be read.
        """
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        path, vocab, merges = (folder / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
        if not path.exists() and not (vocab.exists() and merges.exists()):
            raise FileNotFoundError(f"{folder} has no tokenizer.json")
        for file in (path, vocab, merges):
            check_plain(file)
        try:
            if path.exists():
                tokenizer = Tokenizer.from_file(str(path))
            else:
                tokenizer = byte_level(BPE.from_file(str(vocab), str(merges)))
        except Exception as error:  # tokenizers raises bare Exception
            broken = path if path.exists() else merges
            raise ValueError(f"{broken} is not a readable tokenizer: {error}") from None
        add_listed_tokens(tokenizer, folder)
        return cls(tokenizer)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> TextTokenizer:
        """A byte-level BPE in the Qwen2.5 form (single digits) over `texts`.

        The special tokens take the first ids: end of text 0, then `ADDED_TOKENS`.
        """
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel
        from tokenizers.trainers import BpeTrainer

        tokenizer = byte_level(BPE())
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT, *ADDED_TOKENS],
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    def add_image_tokens(self) -> None:
        """Give a stock Qwen2/2.5 vocabulary the special tokens at the released ids.

        Raises:
            ValueError: when they would not land there.
        """
        if self.backend.token_to_id(IMAGE_AREA) is not None:
            return
        filler = QWEN_TEXT_VOCABULARY - self.backend.get_vocab_size(with_added_tokens=True)
        if filler > 0:
            # Tokens only Qwen2.5 has; a Qwen2 vocabulary gets unused ones in their place.
            self.backend.add_special_tokens([f"<|unused_{i}|>" for i in range(filler)])
        self.backend.add_special_tokens(list(ADDED_TOKENS))
        found = self.backend.token_to_id(PAD)
        if found != QWEN_TEXT_VOCABULARY:
            raise ValueError(
                f"the vocabulary is not Qwen2's: {PAD} would get id {found}, "
                f"not {QWEN_TEXT_VOCABULARY}"
            )

    @cached_property
    def ids(self) -> SpecialIds:
        """Ids of the grammar's special tokens.

        Raises:
            ValueError: naming a token that the vocabulary lacks.
        """
        return SpecialIds(
            eos=self._id(END_OF_TEXT),
            pad=self._id(PAD),
            image_area=self._id(IMAGE_AREA),
            begin_of_image=self._id(BEGIN_OF_IMAGE),
            end_of_image=self._id(END_OF_IMAGE),
            image_placeholder=self._id(IMAGE_PLACEHOLDER),
        )

    def _id(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer has no '{token}' token")
        return int(found)

    def check_against(self, config: NextStepConfig) -> None:
        """Make sure tokenizer and model agree.

        Raises:
            ValueError: naming the first id that differs, or a vocabulary that is too large.
        """
        pairs = {
            "begin_of_image_id": self.ids.begin_of_image,
            "end_of_image_id": self.ids.end_of_image,
            "image_placeholder_id": self.ids.image_placeholder,
        }
        for name, found in pairs.items():
            if getattr(config, name) != found:
                raise ValueError(
                    f"config.json says {name} = {getattr(config, name)}, the tokenizer says {found}"
                )
        if len(self) > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(self)} tokens, the model only {config.vocab_size}"
            )

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens spelled out in it are not recognised as such."""
        ids: list[int] = []
        # User text must not be able to open or close an image block.
        for piece in _split_special(text, self._guarded):
            ids += self.backend.encode(piece, add_special_tokens=False).ids
        return ids

    @cached_property
    def _guarded(self) -> tuple[str, ...]:
        return tuple(t.content for t in self.backend.get_added_tokens_decoder().values())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        self.backend.save(str(folder / "tokenizer.json"))

    def save_released_config(self, folder: Path) -> None:
        """Write the two files that the released code's tokenizer class reads beside it."""
        listed = {
            str(number): {
                "content": token.content, "lstrip": token.lstrip, "normalized": token.normalized,
                "rstrip": token.rstrip, "single_word": token.single_word, "special": token.special,
            }
            for number, token in sorted(self.backend.get_added_tokens_decoder().items())
        }  # fmt: skip
        names = {"eos_token": END_OF_TEXT, "pad_token": PAD}
        others = [t for t in ADDED_TOKENS if t != PAD]
        extra = [t for t in others if self.backend.token_to_id(t) is not None]
        names_and_extra = {**names, "additional_special_tokens": extra}
        config = {
            "added_tokens_decoder": listed, **names_and_extra, "bos_token": None,
            "clean_up_tokenization_spaces": False, "padding_side": "left",
            "tokenizer_class": "PreTrainedTokenizerFast",
        }  # fmt: skip
        write_json(folder / "tokenizer_config.json", config)
        write_json(folder / "special_tokens_map.json", names_and_extra)

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))


def byte_level(model: BPE) -> Tokenizer:
    """A byte-level BPE in the Qwen2.5 form: NFC, its word pattern, single digits."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    words = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def add_listed_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Add the tokens that tokenizer_config.json or added_tokens.json list and the file lacks.

    Raises:
        ValueError: when a token would not get the id that is listed for it.
    """
    listed: dict[int, str] = {}
    path = folder / "added_tokens.json"
    if path.exists():
        listed |= {_id_of(path, i): t for t, i in read_json(path).items()}
    path = folder / "tokenizer_config.json"
    if path.exists():
        entries = read_json(path).get("added_tokens_decoder") or {}
        if not isinstance(entries, dict):
            raise ModelFileError(f"{path}: 'added_tokens_decoder' must be an object")
        for number, entry in entries.items():
            if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
                raise ModelFileError(f"{path} lists the id {number!r:.30} without a token")
            listed[_id_of(path, number)] = entry["content"]
    for number, token in sorted(listed.items()):
        if tokenizer.token_to_id(token) is None:
            tokenizer.add_special_tokens([token])
        if tokenizer.token_to_id(token) != number:
            raise ValueError(
                f"{folder} lists token '{token}' with id {number}, "
                f"but it has id {tokenizer.token_to_id(token)}"
            )


def _id_of(path: Path, value: object) -> int:
    """An id of a vocabulary from a file: a number, or a text of digits."""
    digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10
    if not digits and type(value) is not int:
        raise ModelFileError(f"{path}: {value!r:.30} is no id of a token")
    return int(str(value))


def _split_special(text: str, tokens: tuple[str, ...]) -> list[str]:
    """Cut every special token in two, so that its text is read as plain characters."""
    pieces = [text]
    for token in tokens:
        cut: list[str] = []
        for piece in pieces:
            parts = piece.split(token)
            for i, part in enumerate(parts):
                cut.append(
                    (token[1:] if i else "") + part + (token[:1] if i + 1 < len(parts) else "")
                )
        pieces = cut
    return [piece for piece in pieces if piece]
