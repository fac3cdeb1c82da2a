"""Text tokenizer: round trips, guarded special tokens, the released ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from nextstep.config import NextStepConfig
from nextstep.text import special
from nextstep.text.tokenizer import TextTokenizer


@given(st.text(max_size=60))
def test_any_text_comes_back(text_tokenizer: TextTokenizer, text: str) -> None:
    import unicodedata

    ids = text_tokenizer.encode(text)
    assert text_tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("token", [special.END_OF_TEXT, *special.ADDED_TOKENS])
def test_users_cannot_write_special_tokens(text_tokenizer: TextTokenizer, token: str) -> None:
    text = f"a {token} b{token}{token}"
    ids = text_tokenizer.encode(text)
    assert text_tokenizer.backend.token_to_id(token) not in ids
    assert text_tokenizer.decode(ids) == text


def stock_qwen(size: int) -> TextTokenizer:
    return TextTokenizer(Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, "w0")))


@pytest.mark.parametrize("size", [151643, 151646, 151665])
def test_released_ids_on_a_stock_vocabulary(size: int) -> None:
    tokenizer = stock_qwen(size)
    tokenizer.add_image_tokens()
    ids = {token: tokenizer.backend.token_to_id(token) for token in special.ADDED_TOKENS}
    assert ids == dict(zip(special.ADDED_TOKENS, range(151665, 151675), strict=True))


def test_a_larger_vocabulary_is_not_qwen() -> None:
    with pytest.raises(ValueError, match="not Qwen2's"):
        stock_qwen(151700).add_image_tokens()


def test_disagreement_is_named(text_tokenizer: TextTokenizer) -> None:
    config = NextStepConfig.named("nano")
    text_tokenizer.check_against(config)
    with pytest.raises(ValueError, match=r"end_of_image_id = 9.*says 4"):
        text_tokenizer.check_against(config.with_values(end_of_image_id=9))
    with pytest.raises(ValueError, match="only 10"):
        text_tokenizer.check_against(config.with_values(vocab_size=10))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        TextTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="not a readable tokenizer"):
        TextTokenizer.from_folder(tmp_path)
    with pytest.raises(ValueError, match="has no"):
        _ = stock_qwen(10).ids
