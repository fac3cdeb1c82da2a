"""What the scorer's networks are trained with: losses, and pictures made worse.

Legend: B pictures, M rows of objects (unused ones all 0), H W pixels, h w places, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nextstep.evaluate.world.network import ALPHABET, ANY, SIDE, SIGN, STRIDE

PLACES = SIDE // STRIDE
NAMED = ("name", "style", "colour", "tone")
SHARES = {"name": 1.0, "style": 0.6, "colour": 0.6, "tone": 0.3}
NEIGHBOUR = 0.25
"""How much the eight places around a centre count."""


def detector_loss(
    found: dict[str, Tensor], boxes: Tensor, names: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Penalty-reduced focal loss of the centres (Law and Deng 2018, Zhou et al. 2019), smooth L1
    of boxes and cross entropies of the rest at the centre and its neighbours.

    Args:
        found: maps [B, C, h, w] of `DetectorNetwork`.
        boxes: [B, M, 4] in pixels.
        names: [B, M, 4] classes in the order of `NAMED`.

    Returns:
        The loss, and its parts with the shares of right names and styles.
    """
    used = boxes[..., 2] > boxes[..., 0]
    row, _ = used.nonzero(as_tuple=True)
    boxes, names = boxes[used] / STRIDE, names[used]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0.5)
    cell = middle.floor().clamp(0, PLACES - 1)
    heat = _heat(found["centre"].shape[0], row, cell, extent)
    objects = max(1, len(row))
    centre = _focal(found["centre"][:, 0], heat) / objects
    near = torch.tensor([(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)], dtype=torch.float32)
    at = cell[:, None] + near
    inside = ((at >= 0) & (at < PLACES)).all(-1)
    weight = torch.where(near.abs().sum(-1) == 0, 1.0, NEIGHBOUR) * inside
    weight = weight / weight.sum(-1, keepdim=True)
    x, y = at.clamp(0, PLACES - 1).long().unbind(-1)
    rows = row[:, None].expand_as(x)
    box = found["box"].permute(0, 2, 3, 1)[rows, y, x]
    wanted = torch.cat(
        (middle[:, None] - at - 0.5, extent.log()[:, None].expand(-1, 9, -1)), dim=-1
    )
    apart = F.smooth_l1_loss(box, wanted, beta=0.1, reduction="none").sum(-1)
    # An offset matters less for a large object.
    parts = {"centre": centre, "box": (apart * weight).sum() / objects}
    told = {}
    for number, part in enumerate(NAMED):
        logits = found[part].permute(0, 2, 3, 1)[rows, y, x]
        right = names[:, number]
        counted = right != ANY
        if not counted.any():
            continue
        goal = right[counted, None].expand(-1, 9)
        entropy = F.cross_entropy(
            logits[counted].flatten(0, 1), goal.flatten(), reduction="none", label_smoothing=0.02
        )
        total = (entropy.view(-1, 9) * weight[counted]).sum()
        parts[part] = SHARES[part] * total / counted.sum()
        told[f"{part} right"] = float((logits[counted, 4].argmax(-1) == goal[:, 0]).float().mean())
    loss = torch.stack(list(parts.values())).sum()
    return loss, {
        "loss": float(loss.detach()),
        "centre": float(centre.detach()),
        "box": float(parts["box"].detach()),
        **told,
    }


def _heat(B: int, row: Tensor, cell: Tensor, extent: Tensor) -> Tensor:
    """1 at every centre, falling around it like a bell as wide as the object; [B, h, w]."""
    spread = (extent.amin(-1) * 0.12).clamp(min=0.6)
    places = torch.arange(PLACES)
    down = (places[None, :, None] - cell[:, 1, None, None]).square()
    across = (places[None, None, :] - cell[:, 0, None, None]).square()
    bells = torch.exp(-(down + across) / (2 * spread.square())[:, None, None])
    heat = torch.zeros(B, PLACES * PLACES)
    index = row[:, None].expand(-1, PLACES * PLACES)
    return heat.scatter_reduce(0, index, bells.flatten(1), "amax").view(B, PLACES, PLACES)


def _focal(logits: Tensor, heat: Tensor) -> Tensor:
    share = logits.sigmoid()
    hit = heat > 0.999
    good = F.logsigmoid(logits) * (1 - share).square()
    bad = F.logsigmoid(-logits) * share.square() * (1 - heat) ** 4
    return -torch.where(hit, good, bad).sum()


def reader_loss(logits: Tensor, texts: list[str]) -> tuple[Tensor, dict[str, float]]:
    """Connectionist temporal classification (Graves et al. 2006); logits [B, 27, columns]."""
    goal = torch.tensor([ALPHABET.index(letter) + 1 for text in texts for letter in text])
    lengths = torch.tensor([len(text) for text in texts])
    columns = torch.full((len(texts),), logits.shape[-1])
    logs = logits.permute(2, 0, 1).log_softmax(-1)
    loss = F.ctc_loss(logs, goal, columns, lengths, zero_infinity=True)
    from nextstep.evaluate.world.network import spelled

    right = sum(a == b for a, b in zip(spelled(logits), texts, strict=True)) / len(texts)
    return loss, {"loss": float(loss.detach()), "right": right}


def mirrored(
    pixels: Tensor, boxes: Tensor, names: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Half of the pictures without a sign turned round, with their boxes."""
    turned = torch.rand(len(pixels), generator=generator) < 0.5
    turned &= ~(names[..., 0] == SIGN).any(-1)
    pixels = torch.where(turned[:, None, None, None], pixels.flip(-1), pixels)
    other = boxes.clone()
    other[..., 0], other[..., 2] = SIDE - boxes[..., 2], SIDE - boxes[..., 0]
    other[boxes[..., 2] <= boxes[..., 0]] = 0
    return pixels, torch.where(turned[:, None, None], other, boxes)


def worsened(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Some pictures blurred, bent, blotched, with other contrast; [B, 3, H, W] in [-1, 1]."""
    B = len(pixels)

    def some(share: float) -> Tensor:
        return torch.rand(B, generator=generator) < share

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    pixels = pixels.clone()
    for share in (0.2, 0.15):
        chosen = some(share)
        if chosen.any():
            pixels[chosen] = _blurred(pixels[chosen], float(uniform(0.4, 1.0, 1)))
    chosen = some(0.15)
    if chosen.any():
        small = round(SIDE * float(uniform(0.6, 0.9, 1)))
        less = F.interpolate(pixels[chosen], size=small, mode="bilinear", antialias=True)
        pixels[chosen] = F.interpolate(less, size=SIDE, mode="bilinear")
    chosen = some(0.2)
    if chosen.any():
        pixels[chosen] = _bent(pixels[chosen], generator)
    count = int((chosen := some(0.25)).sum())
    for places, level in ((16, 0.08), (64, 0.06)):
        blots = torch.randn(count, 3, places, places, generator=generator)
        blots = F.interpolate(blots, size=SIDE, mode="bilinear")
        pixels[chosen] += blots * uniform(0.0, level, count, 1, 1, 1)
    contrast = uniform(0.93, 1.05, B, 1, 1, 1)
    return (pixels * contrast + uniform(-0.06, 0.06, B, 3, 1, 1)).clamp(-1, 1)


def _blurred(pixels: Tensor, width: float) -> Tensor:
    places = torch.arange(-3, 4, dtype=torch.float32)
    bell = torch.exp(-places.square() / (2 * width**2))
    bell = (bell / bell.sum()).repeat(3, 1)
    padded = F.pad(pixels, (3, 3, 3, 3), mode="replicate")
    across = F.conv2d(padded, bell[:, None, None, :], groups=3)
    return F.conv2d(across, bell[:, None, :, None], groups=3)


def _bent(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shapes wobble by up to about three pixels."""
    B = len(pixels)
    bend = torch.randn(B, 2, 6, 6, generator=generator) * 1.1 / SIDE * 2
    bend = F.interpolate(bend, size=SIDE, mode="bicubic", align_corners=True)
    still = torch.detector(2, 3).expand(B, 2, 3)
    grid = F.affine_grid(still, [B, 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(
        pixels, grid + bend.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )
