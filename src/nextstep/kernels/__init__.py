"""Native code for processors; here, without torch, the formats that weights are rounded to."""

from __future__ import annotations

from nextstep.errors import NextStepError

NAMES = ("int8", "int4", "bf16")
"""What weights may be rounded to, to be read faster."""


def formats(quantize: str) -> tuple[str, str]:
    """Formats of the layers and of the flow head, of "int8" or "int4/int8".

    Raises:
        NextStepError: for another name.
    """
    parts = quantize.split("/")
    if len(parts) > 2 or any(part not in NAMES for part in parts):
        raise NextStepError(
            f"weights cannot be quantised to '{quantize}'; choose from {', '.join(NAMES)}, or give "
            "the backbone's and the flow head's apart, as in int4/int8"
        )
    return parts[0], parts[-1]
