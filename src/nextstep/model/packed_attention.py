"""Attention inside documents that share rows.

Everything but attention works position by position, so packed rows need no padding there. For
attention the documents are taken out of their rows: on a CPU into a few groups of similar length,
in which plainly causal attention is all there is; on a GPU torch's flex attention skips the blocks
between documents. A boolean mask over whole rows is the fallback that works everywhere.

Legend: B rows, S positions, N = B*S, H query heads, G key/value heads, d head size, n documents of
a group, L their length with padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nextstep.kernels.build import keep_compiled_code_private

AttentionKind = Literal["groups", "flex", "mask"]

STEP = 16
"""Lengths of groups are multiples of this, as the tiles of matrix units are."""

SHRINK = 0.75
"""A group takes documents down to this share of its length."""


@dataclass(frozen=True)
class DocumentGroup:
    """Documents of similar length.

    Attributes:
        shape: (n, L).
        sources: [n*L] flat positions; padding repeats the document's own last position, so that
            not even a number that is none can come from a neighbour.
        targets: [n*L] the same, but padding goes to N, behind all positions.
    """

    shape: tuple[int, int]
    sources: Tensor
    targets: Tensor


class Documents:
    """Where the documents of packed rows lie, and how attention keeps to them.

    Args:
        numbers: [B, S] number of the document in its row, each in one piece; -1 in padding.
        device: where attention runs; default that of `numbers`.
        attention: default "groups" on a CPU and "flex" elsewhere.
        pictures: [B, S] number of the picture in its row, -1 elsewhere. Positions of one picture
            see each other in both directions; everything else stays causal. None for no picture.
    """

    def __init__(
        self,
        numbers: Tensor,
        device: torch.device | str | None = None,
        attention: AttentionKind | None = None,
        pictures: Tensor | None = None,
    ) -> None:
        self.device = numbers.device if device is None else torch.device(device)
        self.attention: AttentionKind = attention or (
            "groups" if self.device.type == "cpu" else "flex"
        )
        self.starts, self.lengths = _runs(numbers.cpu().numpy())
        self.numbers = numbers.to(self.device)
        self.pictures = None if pictures is None else pictures.to(self.device)
        self._biases: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        self._head_rows: dict[tuple[int, int], HeadRows] = {}

    @property
    def looked_at(self) -> float:
        """Pairs of positions that attention is about: sum over documents of length*(length+1)/2,
        and over pictures that are seen in both directions of tokens*(tokens-1)/2.
        """
        lengths = self.lengths.astype(np.float64)
        pairs = float((lengths * (lengths + 1)).sum() / 2)
        if self.pictures is not None:
            tokens = _runs(self.pictures.cpu().numpy())[1].astype(np.float64)
            pairs += float((tokens * (tokens - 1)).sum() / 2)
        return pairs

    @cached_property
    def groups(self) -> list[DocumentGroup]:
        """Documents by length, longest first."""
        order = np.argsort(-self.lengths, kind="stable")
        starts, lengths = self.starts[order], self.lengths[order]
        padded = -(-lengths // STEP) * STEP
        made, first = [], 0
        while first < len(lengths):
            L = int(padded[first])
            end = first + int(np.count_nonzero(padded[first:] >= SHRINK * L))
            made.append(self._group(starts[first:end], lengths[first:end], L))
            first = end
        return made

    def _group(self, starts: np.ndarray, lengths: np.ndarray, length: int) -> DocumentGroup:
        steps = np.arange(length)
        sources = starts[:, None] + np.minimum(steps, lengths[:, None] - 1)
        targets = np.where(steps < lengths[:, None], sources, self.numbers.numel())
        return DocumentGroup(
            (len(starts), length),
            torch.from_numpy(sources.ravel()).to(self.device),
            torch.from_numpy(targets.ravel()).to(self.device),
        )

    def head_rows(self, heads: int, key_heads: int) -> HeadRows:
        """The groups' rows for so many query and key heads; made once."""
        key = heads, key_heads
        if key not in self._head_rows:
            self._head_rows[key] = self._make_head_rows(heads, key_heads)
        return self._head_rows[key]

    def _make_head_rows(self, heads: int, key_heads: int) -> HeadRows:
        head = torch.arange(heads, device=self.device)
        keys = heads + head // (heads // key_heads)
        every, N = heads + 2 * key_heads, self.numbers.numel()

        def rows(positions: str, stride: int, offset: Tensor) -> Tensor:
            """[R] from each group's positions [n*L]: place * stride + offset of the head."""
            none = torch.empty(0, dtype=torch.long, device=self.device)
            parts = (getattr(g, positions).view(g.shape[0], 1, g.shape[1]) for g in self.groups)
            return torch.cat([none, *((p * stride + offset[:, None]).flatten() for p in parts)])

        def places(targets: Tensor, width: int) -> Tensor:
            """[N, width] where each position and head lies among the targets; -1 in padding."""
            found = torch.full((N * width + width,), -1, device=self.device)
            found[targets] = torch.arange(len(targets), device=self.device)
            return found[: N * width].view(N, width)

        outputs, targets = rows("sources", heads, head), rows("targets", heads, head)
        R, shared = len(targets), heads // key_heads
        back = places(targets, heads)
        key_back = places(rows("targets", key_heads, head[:key_heads]), key_heads)
        whole = torch.cat((back, key_back + R, key_back + R + R // shared), dim=1)
        empty = torch.cat((back, key_back, key_back), dim=1) < 0
        parts, first = [], 0
        for group in self.groups:
            n, L = group.shape
            parts.append((first, n * heads, L))
            first += n * heads * L
        return HeadRows(
            sources=(
                rows("sources", every, head),
                rows("sources", every, keys),
                rows("sources", every, keys + key_heads),
            ),
            outputs=outputs,
            repeated=(targets >= N * heads).nonzero().flatten(),
            back=torch.where(back < 0, R, back).flatten(),
            joint_back=whole.masked_fill(empty, R + 2 * (R // shared)).flatten(),
            parts=parts,
            shared=shared,
        )

    def biases(self, heads: int, dtype: torch.dtype) -> list[Tensor]:
        """What is added to the scores of every group: 0 where a query may look, else -inf.

        Args:
            heads: H.
            dtype: of the scores.

        Returns:
            For each group [L, L], or [n*H, L, L] where pictures are seen in both directions.
        """
        key = heads, dtype
        if key not in self._biases:
            self._biases[key] = [self._bias(group, heads, dtype) for group in self.groups]
        return self._biases[key]

    def _bias(self, group: DocumentGroup, heads: int, dtype: torch.dtype) -> Tensor:
        n, L = group.shape
        later = torch.full((L, L), float("-inf"), dtype=dtype, device=self.device).triu(1)
        if self.pictures is None:
            return later
        places = self.pictures.flatten()[group.sources].view(n, L)
        padding = (group.targets == self.numbers.numel()).view(n, L)
        places = torch.where(padding, -1, places)
        bias = later.expand(n, L, L).masked_fill(_together(places), 0)
        return bias.repeat_interleave(heads, dim=0)

    @cached_property
    def mask(self) -> Tensor:
        """bool [B, 1, S, S], True where a query may look; padding looks at padding."""
        same = self.numbers[:, :, None] == self.numbers[:, None, :]
        seen = same.tril()
        if self.pictures is not None:
            seen |= same & _together(self.pictures)
        return seen[:, None]

    @cached_property
    def block_mask(self) -> Any:
        """The same for flex attention, which skips whole blocks of it."""
        from torch.nn.attention.flex_attention import create_block_mask

        numbers, pictures = self.numbers, self.pictures
        B, S = numbers.shape

        def inside(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            before = q >= k
            if pictures is not None:
                before = before | ((pictures[b, q] == pictures[b, k]) & (pictures[b, k] >= 0))
            return before & (numbers[b, q] == numbers[b, k])

        return create_block_mask(inside, B, None, S, S, device=self.device)


def attend_documents(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, scale: float | None = None
) -> Tensor:
    """Causal attention inside each document.

    Args:
        q: [B, S, H, d], positions already applied.
        k, v: [B, S, G, d].
        documents: of the rows.
        scale: of the scores; default 1/sqrt(d).

    Returns:
        [B, S, H, d]; without meaning in padding, but finite.
    """
    B, S, H, d = q.shape
    if documents.attention == "groups":
        scaled = q * (d**-0.5 if scale is None else scale)
        joint = torch.cat((scaled, k, v), dim=2).flatten(0, 1)
        return attend_joint(joint, H, documents).view(B, S, H, d)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    if documents.attention == "mask":
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=documents.mask, scale=scale, enable_gqa=grouped
        )
    else:
        block_mask = documents.block_mask
        out = flex(q.device)(q, k, v, block_mask=block_mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


def attend_joint(joint: Tensor, heads: int, documents: Documents) -> Tensor:
    """Causal attention inside each document, of what one product of the residual stream gives.

    Args:
        joint: [N, H + 2G, d] queries divided by sqrt(d), keys, values, positions already applied.
        heads: H.
        documents: of the rows.

    Returns:
        [N, H*d]; without meaning in padding, but finite.
    """
    if documents.attention == "groups":
        return GroupAttention.apply(joint, heads, documents)
    key_heads = (joint.shape[1] - heads) // 2
    joint = joint.view(*documents.numbers.shape, *joint.shape[1:])
    q, k, v = joint.split((heads, key_heads, key_heads), dim=2)
    return attend_documents(q, k, v, documents, scale=1.0).flatten(2).flatten(0, 1)


_flex: dict[str, Any] = {}


def flex(device: torch.device) -> Any:
    """Flex attention, compiled where that makes it a kernel."""
    if device.type not in _flex:
        from torch.nn.attention.flex_attention import flex_attention

        keep_compiled_code_private()
        on_gpu = device.type == "cuda"
        _flex[device.type] = torch.compile(flex_attention) if on_gpu else flex_attention
    return _flex[device.type]


@dataclass(frozen=True)
class HeadRows:
    """Rows of d values, one for every position and head, in order of groups: group, n, H, L.

    R rows in all; groups follow each other.

    Attributes:
        sources: [R] rows of the joint tensor [N * (H + 2G)] for queries, keys and values.
        outputs: [R] rows of the result [N * H].
        repeated: [r] those of the R rows that are padding.
        back: [N * H] where each position and head lies among the R, which is R in padding.
        joint_back: [N * (H + 2G)] the same among R rows of queries, R / shared of keys and as many
            of values, one after the other; in padding the row behind all of them.
        parts: (first row, n * H, L) of every group.
        shared: queries per key, H / G.
    """

    sources: tuple[Tensor, Tensor, Tensor]
    outputs: Tensor
    repeated: Tensor
    back: Tensor
    joint_back: Tensor
    parts: list[tuple[int, int, int]]
    shared: int


class GroupAttention(torch.autograd.Function):
    """softmax(q k^T) v under the documents' mask, group by group, every product one batched call.

    Rows are only ever gathered: out of their places by `sources`, and back by `back`, which on a
    CPU is several times faster than scattering. Args of `apply`: see `attend_joint`.
    """

    @staticmethod
    def forward(ctx: Any, joint: Tensor, heads: int, documents: Documents) -> Tensor:
        """[N, H*d]."""
        rows = documents.head_rows(heads, (joint.shape[1] - heads) // 2)
        flat = joint.reshape(-1, joint.shape[2])
        q, k, v = (flat.index_select(0, source) for source in rows.sources)
        out = q.new_empty(len(q) + 1, q.shape[1])
        out[-1] = 0
        weights = []
        with torch.autocast(joint.device.type, enabled=False):
            biases = documents.biases(heads, q.dtype)
            for part, bias in zip(rows.parts, biases, strict=True):
                own_q, own_k, own_v = (_part(x, part) for x in (q, k, v))
                scores = torch.baddbmm(bias, own_q, own_k.transpose(1, 2))
                weights.append(torch.softmax(scores, dim=-1))
                torch.bmm(weights[-1], own_v, out=_part(out, part))
        ctx.save_for_backward(q, k, v, *weights)
        ctx.rows = rows
        return out.index_select(0, rows.back).view(len(joint), -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """[N, H + 2G, d]."""
        q, k, v, *weights = ctx.saved_tensors
        rows, (g,) = ctx.rows, gradients
        N, d = len(g), q.shape[1]
        g = g.reshape(-1, d).index_select(0, rows.outputs)
        # Padding repeats a position whose gradient counts once.
        g.index_fill_(0, rows.repeated, 0)
        shared, R = rows.shared, len(q)
        room = q.new_empty(R + 2 * (R // shared) + 1, d)
        room[-1] = 0
        to_q, to_k, to_v, _ = room.split((R, R // shared, R // shared, 1))
        for part, weight in zip(rows.parts, weights, strict=True):
            own_q, own_k, own_v, own_g = (_part(x, part) for x in (q, k, v, g))
            to_weight = torch.bmm(own_g, own_v.transpose(1, 2))
            to_score = torch._softmax_backward_data(to_weight, weight, -1, q.dtype)
            torch.bmm(to_score, own_k, out=_part(to_q, part))
            _sum_of_shared(to_score, own_q, part, shared, to_k)
            _sum_of_shared(weight, own_g, part, shared, to_v)
        return room.index_select(0, rows.joint_back).view(N, -1, d), None, None


def _sum_of_shared(
    weight: Tensor, rows: Tensor, part: tuple[int, int, int], shared: int, out: Tensor
) -> None:
    """weight^T rows of one group, [n*H, L, d], summed over the queries of a key into `out`."""
    first, count, L = part
    into = _part(out, (first // shared, count // shared, L))
    if shared == 1:
        torch.bmm(weight.transpose(1, 2), rows, out=into)
    else:
        made = torch.bmm(weight.transpose(1, 2), rows)
        torch.sum(made.view(-1, shared, L, rows.shape[2]), 1, out=into)


def _part(x: Tensor, part: tuple[int, int, int]) -> Tensor:
    """The rows of one group, [n*H, L, d]."""
    first, count, length = part
    return x[first : first + count * length].view(count, length, -1)


def _together(pictures: Tensor) -> Tensor:
    """[B, S] numbers of pictures -> bool [B, S, S], True between positions of one picture."""
    return (pictures[:, :, None] == pictures[:, None, :]) & (pictures >= 0)[:, None, :]


def _runs(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(flat starts, lengths) of the stretches of one number, without padding."""
    fresh = np.ones(numbers.shape, bool)
    fresh[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    starts = np.flatnonzero(fresh)
    lengths = np.diff(np.append(starts, numbers.size))
    real = numbers.ravel()[starts] >= 0
    return starts[real], lengths[real]
