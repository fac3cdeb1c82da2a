"""The special tokens, in the order in which the release added them to the Qwen2.5 vocabulary."""

from __future__ import annotations

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
