"""Shape of a LoRA adapter. Nothing here needs torch before a model is looked at."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

PARTS: dict[str, str] = {
    "attention": r"layers\.\d+\.self_attn\.[qkvo]_proj",
    "mlp": r"layers\.\d+\.mlp\.(gate|up|down)_proj",
    "head": r"image_head\.net\..*",
    "projectors": r"image_(in|out)_projector",
}
"""What can be adapted, as patterns of module names."""


@dataclass(frozen=True)
class AdapterConfig:
    """Shape of an adapter.

    Attributes:
        rank: inner size of the matrices.
        alpha: the product counts alpha / rank times; default twice the rank.
        dropout: of the adapter's input while it is trained.
        parts: any of `PARTS`.

    Raises:
        ValueError: for a value out of range or an unknown part.
    """

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    parts: tuple[str, ...] = tuple(PARTS)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"the rank of an adapter must be at least 1, not {self.rank}")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"the alpha of an adapter must be above 0, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 up to below 1, not {self.dropout}")
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ValueError(
                f"an adapter cannot have {', '.join(unknown) or 'no parts'}; "
                f"choose from {', '.join(PARTS)}"
            )

    @property
    def scaling(self) -> float:
        """How much the product of the matrices counts."""
        return (2.0 * self.rank if self.alpha is None else self.alpha) / self.rank

    def targets(self, model: nn.Module) -> list[str]:
        """Names of the linear layers that get matrices."""
        from torch import nn

        pattern = re.compile("|".join(PARTS[part] for part in self.parts))
        return [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and pattern.fullmatch(name)
        ]
