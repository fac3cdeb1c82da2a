"""Text tokenizer: round trips, guarded special tokens, the released ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from nextstep.config import NextStepConfig
from nextstep.text import tokenizer as special
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


def test_vocabulary_and_merges_without_tokenizer_json(tmp_path: Path) -> None:
    """The older pair of files gives the same ids; listed tokens get theirs, or an error says so."""
    whole = TextTokenizer.train(["a red apple, two cats"] * 4, 290)
    raw = json.loads(whole.backend.to_str())["model"]
    plain = {t: i for t, i in raw["vocab"].items() if i > 10}
    shifted = {t: i - 11 for t, i in plain.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(shifted))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in raw["merges"]))
    tokens = {
        t: len(shifted) + i for i, t in enumerate((special.END_OF_TEXT, *special.ADDED_TOKENS))
    }
    (tmp_path / "added_tokens.json").write_text(json.dumps(tokens))
    # A remote-code entry is never followed.
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": "evil.py"}}))
    pair = TextTokenizer.from_folder(tmp_path)
    assert [i + 11 for i in pair.encode("two red apples")] == whole.encode("two red apples")
    assert pair.ids.eos == len(shifted)
    (tmp_path / "added_tokens.json").write_text(json.dumps({special.PAD: 9999}))
    with pytest.raises(ValueError, match=r"'\[PAD\]' with id 9999"):
        TextTokenizer.from_folder(tmp_path)
    (tmp_path / "merges.txt").write_text("one two three four\n")
    with pytest.raises(ValueError, match=r"merges\.txt is not a readable"):
        TextTokenizer.from_folder(tmp_path)


def test_tokens_listed_beside_tokenizer_json(text_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    text_tokenizer.save(tmp_path)
    text_tokenizer.save_released_config(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    dropped = "<|beginoftext|>"
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] != dropped]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    again = TextTokenizer.from_folder(tmp_path)
    assert again.ids == text_tokenizer.ids
    wanted = text_tokenizer.backend.token_to_id(dropped)
    assert again.backend.token_to_id(dropped) == wanted


def test_released_tokenizer_files_serve_transformers(
    text_tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    text_tokenizer.save(tmp_path)
    text_tokenizer.save_released_config(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.pad_token_id == text_tokenizer.ids.pad
    assert theirs.eos_token_id == text_tokenizer.ids.eos
    assert theirs.padding_side == "left"
    assert theirs.encode("a red apple") == text_tokenizer.encode("a red apple")
