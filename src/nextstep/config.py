"""NextStepConfig: every number that fixes the shape of a model, and the named sizes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from nextstep.errors import ModelFileError
from nextstep.utils.files import read_json

FORMAT = "open-nextstep"
"""`format` of the config.json we write; a folder without it is read as a released layout."""
PRECISIONS = ("auto", "fp32", "bf16")
"""What training computes in; "auto" is what `model.precision.fastest` finds."""


@dataclass(frozen=True)
class NextStepConfig:
    """Shape of backbone, projectors and flow head, and the ids of the sequence grammar.

    Defaults are the released 14B model (arXiv 2508.10711, hub config.json).

    Attributes:
        vocab_size: rows of the embedding and of the language-model head.
        hidden_size, intermediate_size, num_hidden_layers: backbone width, MLP width, depth.
        num_attention_heads, num_key_value_heads, head_dim: grouped-query attention.
        attention_bias, o_attention_bias, mlp_bias: biases of q/k/v, of the output, of the MLP.
        rms_norm_eps, rope_theta, max_position_embeddings: as in Qwen2.
        tie_word_embeddings: the language-model head shares the embedding.
        initializer_range: standard deviation of fresh backbone and projector weights.
        latent_channels, latent_patch_size: an image token has channels * patch^2 values.
        image_position_side: learned row and column embeddings are added to embedded image tokens,
            for grids up to this many rows and columns; 0, as released, adds none.
        flow_map: the flow head predicts mean velocities over spans, guidance folded in (stage
            `distill`).
        fm_head_dim, fm_head_layers: width and depth of the flow head.
        fm_head_batch_mul: noise levels every token is trained at in one step.
        lm_loss_weight, im_loss_weight: weights of cross-entropy and flow matching.
        *_id: ids of the special tokens.
        vae_name_or_path: where the image tokenizer is, relative to the model folder.
    """

    vocab_size: int = 152064
    hidden_size: int = 5120
    intermediate_size: int = 13824
    num_hidden_layers: int = 48
    num_attention_heads: int = 40
    num_key_value_heads: int = 8
    head_dim: int = 128
    attention_bias: bool = True
    o_attention_bias: bool = False
    mlp_bias: bool = False
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    max_position_embeddings: int = 131072
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    latent_channels: int = 16
    latent_patch_size: int = 2
    image_position_side: int = 0
    flow_map: bool = False
    fm_head_dim: int = 1536
    fm_head_layers: int = 12
    fm_head_batch_mul: int = 4
    lm_loss_weight: float = 0.01
    im_loss_weight: float = 1.0
    eos_id: int = 151643
    pad_id: int = 151665
    begin_of_image_id: int = 151667
    end_of_image_id: int = 151668
    image_placeholder_id: int = 151669
    vae_name_or_path: str | None = "vae/"

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2 or self.head_dim < 2:
            raise ValueError(f"head_dim must be even for rotary positions, not {self.head_dim}")

    @property
    def token_size(self) -> int:
        """Values per image token."""
        return self.latent_channels * self.latent_patch_size**2

    @classmethod
    def named(cls, size: str, head: str | None = None) -> NextStepConfig:
        """A named size, with another named flow head if given.

        Raises:
            ValueError: for an unknown name.
        """
        if size not in SIZES:
            raise ValueError(f"unknown model size '{size}'; choose from {', '.join(SIZES)}")
        if head is not None and head not in HEADS:
            raise ValueError(f"unknown flow head '{head}'; choose from {', '.join(HEADS)}")
        return cls(**SIZES[size] | (HEADS[head] if head else {}))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> NextStepConfig:
        """Read ours, the v1 names, the 1.1 legacy names or a stock Qwen2 config.

        Unknown keys are ignored, because released files carry many that mean nothing here.

        Raises:
            ValueError: when a value that fixes a shape is missing, is of another type, or asks
                for arithmetic that is not implemented.
        """
        refuse_unimplemented(raw)
        known = {field.name: field for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in raw.items():
            name = RELEASED_NAMES.get(key, key)
            if name in known and value is not None:
                values[name] = _checked(key, value, str(known[name].type), LIMITS.get(name, MOST))
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            if name not in values:
                raise ValueError(f"there is no '{name}'")
        values.setdefault("num_key_value_heads", values["num_attention_heads"])
        values.setdefault("head_dim", values["hidden_size"] // values["num_attention_heads"])
        if raw.get("model_type") == "qwen2":
            values.setdefault("rms_norm_eps", 1e-6)
        if isinstance(raw.get("rope_parameters"), dict):
            theta = raw["rope_parameters"].get("rope_theta", 1e6)
            values.setdefault("rope_theta", _checked("rope_theta", theta, "float", MOST))
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path) -> NextStepConfig:
        """Read a config.json.

        Raises:
            ModelFileError: naming the file and what is wrong with it.
        """
        raw = read_json(path)
        try:
            return cls.from_dict(raw)
        except ValueError as error:
            raise ModelFileError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """What our config.json holds."""
        return {"format": FORMAT, "model_type": "nextstep", **asdict(self)}

    def to_released_dict(self, dtype: str = "float32") -> dict[str, Any]:
        """The same values under the released v1 names, with the number format of the weights."""
        ours = {v: k for k, v in RELEASED_NAMES.items() if k not in LEGACY_1_1_NAMES}
        out: dict[str, Any] = {ours.get(k, k): v for k, v in asdict(self).items()}
        return out | {
            "model_type": "nextstep",
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "bos_token_id": self.eos_id,
            "latent_size": 64,
            "torch_dtype": dtype,
        }

    def with_values(self, **changes: Any) -> NextStepConfig:
        """A copy with some values changed."""
        return replace(self, **changes)


def refuse_unimplemented(raw: dict[str, Any]) -> None:
    """Refuse a config whose numbers would come out otherwise here.

    Raises:
        ValueError: naming the setting.
    """
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    found = {
        f"rope type {kind!r:.60}": kind != "default",
        f"hidden_act {raw.get('hidden_act')!r:.60}": raw.get("hidden_act", "silu") != "silu",
        "use_sliding_window": bool(raw.get("use_sliding_window")),
        # Present in the released code, used by no released weights.
        "use_gen_pos_embed": bool(raw.get("use_gen_pos_embed")),
    }
    for name, asked in found.items():
        if asked:
            raise ValueError(f"it asks for {name}, which is not implemented")


def _checked(key: str, value: Any, kind: str, most: int) -> Any:
    """The value, if it is of the field's type and, for counts and sizes, positive and possible."""
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= 2**53 else math.inf
    wanted = {"int": int, "float": float, "bool": bool}.get(kind, str)
    right = isinstance(value, wanted) and (wanted is not int or not isinstance(value, bool))
    right = right and (wanted is not float or math.isfinite(value))
    if not right or (wanted is int and not key.endswith(ID_ENDINGS) and value < 1):
        raise ValueError(f"'{key}' must be a positive {kind}, not {value!r:.60}")
    if wanted is int and not 0 <= value <= most:
        raise ValueError(f"'{key}' must be at most {most:,}, not {value!r:.60}")
    return value


MOST = 2**24
"""Of any size or id in a config; larger ones would be built for ever, and fit nowhere."""
LIMITS = {"num_hidden_layers": 1000, "fm_head_layers": 1000, "num_attention_heads": 4096,
          "num_key_value_heads": 4096, "head_dim": 4096, "hidden_size": 2**20,
          "intermediate_size": 2**22, "fm_head_dim": 2**20, "latent_channels": 4096,
          "latent_patch_size": 64}  # fmt: skip
"""The same by field, where less is possible."""

ID_ENDINGS = ("_id", "boi", "eoi", "_id_added", "image_position_side")
"""Keys whose integers may be 0."""

LEGACY_1_1_NAMES = frozenset(
    ("patch_size", "num_channels", "image_loss_weight", "genloss_width", "genloss_depth",
     "genloss_batch_mul")
)  # fmt: skip

RELEASED_NAMES = {
    "boi": "begin_of_image_id",
    "eoi": "end_of_image_id",
    "pad_token_id_added": "pad_id",
    "eos_token_id": "eos_id",
    "patch_size": "latent_patch_size",
    "num_channels": "latent_channels",
    "image_loss_weight": "im_loss_weight",
    "genloss_width": "fm_head_dim",
    "genloss_depth": "fm_head_layers",
    "genloss_batch_mul": "fm_head_batch_mul",
}
"""Released config key -> ours; keys that are spelled alike are not listed."""

HEADS: dict[str, dict[str, Any]] = {
    "small": {"fm_head_dim": 1024, "fm_head_layers": 6},
    "base": {"fm_head_dim": 1536, "fm_head_layers": 12},
    "large": {"fm_head_dim": 2048, "fm_head_layers": 24},
}
"""The three heads of arXiv 2508.10711 table 6: 40M, 157M, 528M."""

_NANO_IDS = {
    "eos_id": 0,
    "pad_id": 1,
    "begin_of_image_id": 3,
    "end_of_image_id": 4,
    "image_placeholder_id": 5,
}

SIZES: dict[str, dict[str, Any]] = {
    "nano": {
        "vocab_size": 2048,
        "hidden_size": 320,
        "intermediate_size": 864,
        "num_hidden_layers": 8,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "rope_theta": 1e4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "fm_head_dim": 320,
        "fm_head_layers": 3,
        **_NANO_IDS,
    },
    "0.5b": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        **HEADS["small"],
    },
    "3b": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        **HEADS["base"],
    },
    "14b": {},
}
"""Named sizes; 0.5b and 3b are the Qwen2.5 backbones of that name, 14b is the release."""
