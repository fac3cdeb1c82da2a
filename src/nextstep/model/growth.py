"""A larger model that begins as an equal of a smaller one.

New widths of the residual stream start at zero: nothing writes to them, while what reads them has
fresh weights, so that the first gradient reaches the writers (function-preserving growth, Chen et
al., Net2Net, arXiv 1511.05641; with zeros as in Chen et al., bert2BERT, arXiv 2110.07143). New
heads, MLP units, layers and blocks of the flow head start without effect in the same way. An
RMSNorm over a stream with zeros divides by less, so its weights shrink by as much.

Legend: E hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nextstep.errors import ModelFileError

if TYPE_CHECKING:
    from nextstep.config import NextStepConfig
    from nextstep.text.tokenizer import TextTokenizer

GROWING = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "image_position_side", "fm_head_layers",
)  # fmt: skip
"""Fields that may be larger than in the model a run starts from."""
FIXED = (
    "head_dim", "fm_head_dim", "latent_channels", "latent_patch_size", "attention_bias",
    "o_attention_bias", "mlp_bias", "rms_norm_eps", "rope_theta", "tie_word_embeddings",
)  # fmt: skip
"""Fields that fix the arithmetic and must be equal."""

_WRITERS = (
    "o_proj", "down_proj", "embed_tokens", "image_in_projector", "image_row_embed",
    "image_column_embed", "image_out_projector",
)  # fmt: skip
_NORMS = ("norm.weight", "layernorm.weight")


def check_growth(small: NextStepConfig, large: NextStepConfig) -> None:
    """Make sure that one model can begin as the other.

    Raises:
        ModelFileError: naming the field that stands against it.
    """
    for name in FIXED:
        if getattr(small, name) != getattr(large, name):
            raise ModelFileError(
                f"a model cannot grow from {name} = {getattr(small, name)} to "
                f"{getattr(large, name)}; what can grow is {', '.join(GROWING)}"
            )
    for name in GROWING:
        if getattr(small, name) > getattr(large, name):
            raise ModelFileError(
                f"a model cannot shrink from {name} = {getattr(small, name)} to "
                f"{getattr(large, name)}"
            )
    shared = [c.num_attention_heads // c.num_key_value_heads for c in (small, large)]
    if shared[0] != shared[1]:
        raise ModelFileError(
            f"a model cannot grow from {shared[0]} to {shared[1]} query heads per key head"
        )


def grown(
    tensors: Iterable[tuple[str, Tensor]],
    fresh: Iterable[tuple[str, Tensor]],
    small: NextStepConfig,
    large: NextStepConfig,
) -> Iterator[tuple[str, Tensor]]:
    """Weights of the larger model.

    Args:
        tensors: names and weights of the smaller one.
        fresh: names and first weights of the larger one, as `reset_parameters` makes them.
        small, large: configs of the two.

    Yields:
        Name and fp32 tensor of everything in `fresh`.

    Raises:
        ModelFileError: see `check_growth`.
    """
    check_growth(small, large)
    shrink = math.sqrt(small.hidden_size / large.hidden_size)
    given = dict(tensors)
    for name, made in fresh:
        whole = made.detach().float().clone()
        kept = given.pop(name, None)
        if any(word in name for word in _WRITERS) and (kept is not None or "layers." in name):
            whole.zero_()
        if kept is not None:
            kept = kept.detach().float()
            if name.endswith(_NORMS) and "image_head" not in name:
                kept = kept * shrink
                whole.fill_(float(kept.mean()))
            whole[tuple(slice(0, size) for size in kept.shape)] = kept
        yield name, whole


def carried_vocabulary(table: Tensor, old: TextTokenizer, new: TextTokenizer) -> Tensor:
    """The embedding for another text tokenizer.

    A token that both know keeps its row; a new one gets the mean of the tokens that the old
    tokenizer spells it with.

    Args:
        table: [old vocabulary, E].
        old, new: tokenizers.

    Returns:
        [tokens of `new`, E].
    """
    rows = [table[_spelled(number, old, new)].float().mean(0) for number in range(len(new))]
    return torch.stack(rows).to(table.dtype)


def _spelled(number: int, old: TextTokenizer, new: TextTokenizer) -> Sequence[int]:
    token = str(new.backend.id_to_token(number))
    same = old.backend.token_to_id(token)
    if same is not None:
        return [int(same)]
    return old.encode(new.backend.decode([number], skip_special_tokens=False)) or [old.ids.pad]
