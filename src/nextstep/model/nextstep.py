"""NextStepModel: one sequence of text ids and image tokens, read and predicted.

Legend: B rows, S positions, E hidden size, M image tokens of all rows in reading order,
D values per token, V vocabulary, P positions whose next id is asked, K head batch multiplier.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nextstep.config import NextStepConfig
from nextstep.flow.path import interpolate, logit_normal_time, target_velocity
from nextstep.model.backbone import Backbone, Layer, embedding
from nextstep.model.chunked_sum import sum_in_parts
from nextstep.model.flow_head import FlowHead
from nextstep.model.fused import (
    Fused,
    can_compile,
    can_fuse,
    compute_dtype,
    finish,
    is_plain,
    project,
)
from nextstep.model.fused_head import flow_error, head_weights
from nextstep.text.sequence import IGNORE

TOKENS_AT_ONCE = {"cpu": 256, "cuda": 4096}
"""Image tokens whose loss is made together when it is compiled: on a CPU their tensors fit the
caches, and on a GPU they keep all of it busy for longer than it takes to start them."""

LARGEST_LOGITS = 2**27
"""Logits that are kept for the backward pass at once; 512 MB in fp32."""


class NextStepModel(Backbone):
    """Backbone, projectors, flow head and language-model head."""

    def __init__(self, config: NextStepConfig) -> None:
        super().__init__(config)
        E = config.hidden_size
        self.lm_head = nn.Linear(E, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.image_in_projector = nn.Linear(config.token_size, E)
        if config.image_position_side:
            self.image_row_embed = embedding(config.image_position_side, E)
            self.image_column_embed = embedding(config.image_position_side, E)
        self.image_out_projector = nn.Linear(E, E)
        self.image_head = FlowHead(config)
        self.flow_error: Callable[..., Tensor] | None = None
        self.core: object | None = None  # of `engine.backends.cpu_kernels`, once weights are packed

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> NextStepModel:
        """Read a model folder of any known layout, to train it; see `checkpoints.load_model`."""
        from nextstep.model.checkpoints import load_model

        return load_model(Path(folder), dtype, device).requires_grad_()

    @classmethod
    def from_language_model(
        cls, folder: str | Path, head: str = "base", dtype: torch.dtype | None = None
    ) -> NextStepModel:
        """Start from a stock Qwen2/2.5 folder; see `checkpoints.load_language_model`."""
        from nextstep.model.checkpoints import load_language_model

        return load_language_model(Path(folder), head, dtype).requires_grad_()

    def reset_parameters(self) -> None:
        """Fresh weights: N(0, initializer_range) with zero biases, the head by its own rule."""
        std = self.config.initializer_range
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and "image_head" not in name:
                nn.init.normal_(module.weight, std=std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.image_head.reset_parameters()

    def compile_training(self) -> None:
        """Let training on packed rows run through compiled code; once is enough.

        Layers and flow head are compiled as `fused` and `fused_head` write them. With an adapter
        or a hook in them, without gradients, and where torch.compile does not work, they run as
        they are.
        """
        if self.flow_error is not None or not can_compile(self.lm_head.weight.device.type):
            return
        self.flow_error = torch.compile(flow_error, dynamic=False)
        if can_fuse(self.config):
            fused = Fused(*(torch.compile(f, dynamic=False) for f in (project, finish)))
            for layer in self.layers:
                assert isinstance(layer, Layer)
                layer.fused = fused

    def embed_image(self, tokens: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Input embeddings of image tokens.

        Args:
            tokens: [M, D].
            coordinates: [M, 2] row and column of each; read only by a model with learned positions.

        Returns:
            [M, E].

        Raises:
            ValueError: when learned positions have no coordinates, or too small a table.
        """
        projected = self.image_in_projector(tokens.to(self.image_in_projector.weight.dtype))
        return self.add_positions(projected, coordinates)

    def add_positions(self, embedded: Tensor, coordinates: Tensor | None) -> Tensor:
        """Projected image tokens with learned positions where there are some; see `embed_image`."""
        side = self.config.image_position_side
        if not side:
            return embedded
        if coordinates is None:
            raise ValueError("this model adds learned positions, so image tokens need coordinates")
        if int(coordinates.max()) >= side:
            raise ValueError(
                f"this model's learned positions reach {side} rows and columns of image tokens, "
                f"the picture has {int(coordinates.max()) + 1}"
            )
        rows, columns = coordinates.unbind(-1)
        return embedded + self.image_row_embed(rows) + self.image_column_embed(columns)

    def embed(
        self,
        ids: Tensor,
        image_tokens: Tensor | None = None,
        coordinates: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Input embeddings.

        Args:
            ids: [B, S]; image places hold the placeholder id.
            image_tokens: [M, D] for all placeholders, row by row.
            coordinates: see `embed_image`.
            places: [M] flat indices of the placeholders; default looked for in `ids`.

        Returns:
            [B, S, E].

        Raises:
            ValueError: when placeholders and image tokens differ in number.
        """
        projected = None
        if image_tokens is not None and len(image_tokens):
            projected = self.embed_image(image_tokens, coordinates)
        return self.embed_with(ids, projected, places)

    def embed_with(
        self, ids: Tensor, projected: Tensor | None, places: Tensor | None = None
    ) -> Tensor:
        """As `embed`, with image tokens that are embedded already, [M, E]."""
        if places is None:
            places = (ids == self.config.image_placeholder_id).flatten().nonzero().flatten()
        given = 0 if projected is None else len(projected)
        if len(places) != given:
            raise ValueError(
                f"the sequence has {len(places)} image places but {given} image tokens"
            )
        embeddings = self.embed_tokens(ids)
        if projected is None:
            return embeddings
        flat = embeddings.flatten(0, 1).index_copy(0, places, projected.to(embeddings.dtype))
        return flat.view_as(embeddings)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """[..., E] -> [..., V]."""
        return self.lm_head(hidden)

    def image_condition(self, hidden: Tensor) -> Tensor:
        """What the flow head is conditioned on.

        Args:
            hidden: [M, E], states of the positions before the tokens to be predicted.

        Returns:
            [M, E].
        """
        return self.image_out_projector(hidden)

    def text_loss(self, hidden: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the next id, where its label counts.

        Args:
            hidden: [B, S, E].
            ids: [B, S]; a position whose next id is a placeholder is left out.
            labels: [B, S] with IGNORE where nothing is asked.

        Returns:
            Scalar; 0 when no position counts.
        """
        following = labels[:, 1:]
        counted = (following != IGNORE) & (ids[:, 1:] != self.config.image_placeholder_id)
        total = self.text_loss_sum(hidden[:, :-1][counted], following[counted])
        return total / counted.sum().clamp(min=1)

    def text_loss_sum(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, fp32.

        Args:
            hidden: [P, E] states of the positions before the ids.
            targets: [P] ids.

        Returns:
            Scalar, sum over positions; 0 for none.
        """
        total = hidden[:0].float().sum()  # 0, with a gradient
        rows = max(1, LARGEST_LOGITS // self.config.vocab_size)
        many = len(targets) > rows
        for part, ids in zip(hidden.split(rows), targets.split(rows), strict=True):
            if many:
                # The logits of a large vocabulary are made again in the backward pass.
                total = total + checkpoint(self._text_loss_part, part, ids, use_reentrant=False)
            elif len(ids):
                total = total + self._text_loss_part(part, ids)
        return total

    def text_log_probs(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probability of each id, fp32.

        Args:
            hidden: [P, E] states of the positions before the ids.
            targets: [P] ids.
            temperature: divides the logits.

        Returns:
            [P].
        """
        rows = max(1, LARGEST_LOGITS // self.config.vocab_size)
        if len(targets) <= rows:
            return self._log_prob_part(hidden, targets, temperature)
        parts = zip(hidden.split(rows), targets.split(rows), strict=True)
        return torch.cat(
            [
                checkpoint(self._log_prob_part, part, ids, temperature, use_reentrant=False)
                for part, ids in parts
            ]
        )

    def _log_prob_part(self, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
        logits = self.text_logits(hidden).float() / temperature
        return -F.cross_entropy(logits, targets, reduction="none")

    def _text_loss_part(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.text_logits(hidden).float(), targets, reduction="sum")

    def image_loss(self, condition: Tensor, tokens: Tensor, u: Tensor, noise: Tensor) -> Tensor:
        """Flow matching: mean squared error of the velocity, fp32.

        Args:
            condition: [M, E] after the out-projector.
            tokens: [M, D] targets.
            u: [K*M] standard normal; t = sigmoid(u).
            noise: [K*M, D]; the tokens are tiled K times to meet it.

        Returns:
            Scalar, mean over values and tokens.
        """
        return self.image_loss_sum(condition, tokens, u, noise) / len(tokens)

    def image_loss_sum(self, condition: Tensor, tokens: Tensor, u: Tensor, noise: Tensor) -> Tensor:
        """As `image_loss`, but the sum over tokens of the mean over noise levels and values."""
        # Rows of text alone have no tokens: then all of it is empty, and keeps its gradient.
        repeats = len(noise) // max(1, len(tokens))
        if self.flow_error is not None and torch.is_grad_enabled() and is_plain(self.image_head):
            net = self.image_head.net
            weights = head_weights(net, compute_dtype(net.cond_embed.weight))
            u, noise = u.view(repeats, -1), noise.view(repeats, *tokens.shape)
            rows = (condition, 0), (tokens.float(), 0), (u, 1), (noise, 1)
            size = TOKENS_AT_ONCE.get(tokens.device.type, 4096)
            return sum_in_parts(self.flow_error, rows, weights, size)
        velocity, target = self.image_velocities(condition, tokens, u, noise)
        error = F.mse_loss(velocity, target, reduction="sum")
        return error / (repeats * tokens.shape[-1])

    def image_velocities(
        self, condition: Tensor, tokens: Tensor, u: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predicted velocities at the noise levels of `image_loss` and what they should be.

        Returns:
            Both [K*M, D], fp32.
        """
        # Rows of text alone have no tokens: then all of it is empty, and keeps its gradient.
        repeats = len(noise) // max(1, len(tokens))
        data = tokens.float().repeat(repeats, 1)
        t = logit_normal_time(u)
        x = interpolate(data, noise, t[:, None])
        # The condition is embedded before it is tiled: the same numbers for a K-th of the work.
        embedded = self.image_head.embed_condition(condition).repeat(repeats, 1)
        velocity = self.image_head.velocity(
            x.to(embedded.dtype), self.image_head.embed_time(t), embedded
        )
        return velocity.float(), target_velocity(data, noise)
