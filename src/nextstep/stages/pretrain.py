"""Stage `pretrain`: cross-entropy on text, flow matching on image tokens.

Total = lm_loss_weight * CE + im_loss_weight * FM (arXiv 2508.10711 table 1: 0.01 and 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextstep.data.batch import SequenceBatch
from nextstep.image.latents import token_norm
from nextstep.model.nextstep import NextStepModel


def noisy_context(tokens: Tensor, strength: float, rows: Tensor) -> Tensor:
    """What the backbone reads while it trains: tokens moved off their place, still normalised.

    A model that only ever reads perfect tokens is lost as soon as one of its own is a little off;
    noise of independent levels on the context (xAR, arXiv 2502.20388) teaches it to go on.

    Args:
        tokens: [M, D], normalised.
        strength: largest standard deviation; every token draws its own level from U[0, strength].
        rows: [T] which tokens; those of given pictures (the sources of an edit) stay as they are,
            because generation reads them perfect too.

    Returns:
        [M, D], normalised again.
    """
    clean = tokens[rows]
    level = torch.rand(len(rows), 1, device=tokens.device) * strength
    return tokens.index_copy(0, rows, token_norm(clean + level * torch.randn_like(clean)))


def sequence_loss(
    model: NextStepModel,
    batch: SequenceBatch,
    head_batch_mul: int | None = None,
    context_noise: float = 0.0,
) -> dict[str, Tensor]:
    """Loss of one batch of sequences.

    Args:
        model: the unified model.
        batch: see `SequenceBatch`.
        head_batch_mul: noise levels per token; default from the model's config.
        context_noise: strength of `noisy_context`; 0 reads the tokens as they are. Targets are
            always clean.

    Returns:
        Scalars `loss`, `lm_loss`, `im_loss`.
    """
    config = model.config
    tokens = batch.image_tokens if batch.image_tokens.numel() else None
    if tokens is not None and context_noise:
        tokens = noisy_context(tokens, context_noise, batch.target_rows)
    hidden = model.hidden(model.embed(batch.ids, tokens, batch.coordinates))
    lm_loss = model.text_loss(hidden, batch.ids, batch.labels)
    im_loss = hidden.new_zeros(())
    if len(batch.condition_places):
        condition = model.image_condition(hidden.flatten(0, 1)[batch.condition_places])
        targets = batch.image_tokens[batch.target_rows]
        count = len(targets) * (head_batch_mul or config.fm_head_batch_mul)
        u = torch.randn(count, device=hidden.device)
        noise = torch.randn(count, config.token_size, device=hidden.device)
        im_loss = model.image_loss(condition, targets, u, noise)
    loss = config.lm_loss_weight * lm_loss + config.im_loss_weight * im_loss
    return {"loss": loss, "lm_loss": lm_loss.detach(), "im_loss": im_loss.detach()}
