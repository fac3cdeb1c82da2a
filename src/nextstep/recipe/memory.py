"""How much memory a rank needs, counted part by part.

What autograd keeps for the backward pass is not guessed from a formula: the layers are run on
tensors without storage, with hooks that see every tensor that is kept. So the count follows the
code.

Legend: B rows of a micro-batch, S positions of a row, T = B*S.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nextstep.config import NextStepConfig
from nextstep.recipe.counting import Parameters, mixture, size_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nextstep.image.autoencoder import AutoencoderConfig
    from nextstep.recipe.schema import Recipe

FP32, BF16 = 4, 2


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the height of a step.

    Attributes:
        weights: fp32 master weights, and the copies that the computation reads.
        gradients: fp32.
        optimizer: running means.
        average: of the weights.
        activations: kept for the backward pass.
        workspace: logits, one layer's backward pass, pictures being encoded.
        process: what the program itself takes before any of this.
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    workspace: float
    process: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(vars(self).values())


@functools.lru_cache(maxsize=32)
def layer_bytes(config: NextStepConfig, rows: int, length: int, bf16: bool) -> int:
    """What autograd keeps of one transformer layer for `rows` rows of `length` positions."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from nextstep.model.backbone import Layer, rotary_angles

    with FakeTensorMode():
        layer = Layer(config, 0)
        x = torch.randn(rows, length, config.hidden_size, requires_grad=True)
        positions = torch.arange(length).expand(rows, length)
        angles = rotary_angles(positions, config.head_dim, config.rope_theta)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return kept_bytes(lambda: layer(x, angles, None, None), layer)


@functools.lru_cache(maxsize=32)
def head_bytes(config: NextStepConfig, rows: int, bf16: bool) -> int:
    """What autograd keeps of the flow head for `rows` pairs of token and noise level."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from nextstep.model.flow_head import FlowHead

    with FakeTensorMode():
        head = FlowHead(config)
        x, t = torch.randn(rows, config.token_size), torch.rand(rows)
        condition = torch.randn(rows, config.hidden_size, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return kept_bytes(lambda: head(x, t, condition), head)


def kept_bytes(call: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes of all tensors that autograd keeps while `call` runs, the module's weights left out."""
    import torch

    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}

    def seen(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()._cdata
        if place not in own:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@functools.lru_cache(maxsize=32)
def autoencoder_bytes(
    config: AutoencoderConfig, crops: int, size: int, decoder_only: bool, bf16: bool
) -> int:
    """What autograd keeps of encoder and decoder for a micro-batch of crops."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from nextstep.image.autoencoder import Autoencoder

    with FakeTensorMode():
        network = Autoencoder(config)
        pixels = torch.randn(crops, 3, size, size)

        def call() -> Tensor:
            with torch.set_grad_enabled(not decoder_only):
                latents = network.mean(pixels)
            return network.decoder(latents)

        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return kept_bytes(call, network)


def sequence_memory(
    recipe: Recipe, config: NextStepConfig, parameters: Parameters, ranks: int, cpu: bool
) -> Memory:
    """Memory of a rank that trains the transformer."""
    split = max(1, ranks // recipe.parallel.replicas)
    bf16 = recipe.precision == "bf16"
    micro = -(-recipe.data.rows // (ranks * recipe.data.rows_per_micro))
    activations, workspace = _activations(recipe, config, bf16)
    copies, sums = _working_copies(recipe, config, parameters, split, micro, bf16)
    return Memory(
        weights=FP32 * parameters.total / split + copies,
        gradients=FP32 * parameters.trained / split + sums,
        optimizer=_optimizer_bytes(recipe, parameters) / split,
        average=(FP32 * parameters.trained / split) if recipe.ema else 0,
        activations=activations,
        workspace=workspace + _encoder_workspace(recipe, bf16),
        process=PROCESS[cpu],
    )


def tokenizer_memory(recipe: Recipe, ranks: int, cpu: bool) -> Memory:
    """Memory of a rank that trains the image tokenizer."""
    from nextstep.image.autoencoder import Autoencoder
    from nextstep.recipe.counting import autoencoder_config, on_meta

    options = recipe.tokenizer
    assert options is not None
    config = autoencoder_config(recipe)
    network = on_meta(Autoencoder, config)
    total = size_of(network)
    trained = size_of(network.decoder) if options.decoder_only else total
    split = max(1, ranks // recipe.parallel.replicas)
    bf16 = recipe.precision == "bf16"
    crops = options.crops.per_micro or max(1, options.crops.batch // ranks)
    kept = autoencoder_bytes(config, crops, options.crops.size, options.decoder_only, bf16)
    widest = crops * options.crops.size**2 * config.block_channels[0] * FP32
    return Memory(
        weights=FP32 * total / split + (BF16 * total if bf16 else 0),
        gradients=FP32 * trained / split,
        optimizer=2 * FP32 * trained / split,
        average=(FP32 * trained / split) if recipe.ema else 0,
        activations=kept,
        workspace=WIDEST_COPIES * widest,
        process=PROCESS[cpu],
    )


PROCESS = {False: 1.0e9, True: 0.45e9}
"""What a process takes before a model is there: a CUDA context and its libraries, or torch and
python on the CPU (by whether it is the CPU)."""
WIDEST_COPIES = 4
"""Full-resolution feature maps that are alive at once in a convolution's backward pass."""
LOGIT_COPIES = 3
"""fp32 tables of logits alive at once: the logits, their softmax, its gradient."""


def _activations(recipe: Recipe, config: NextStepConfig, bf16: bool) -> tuple[float, float]:
    """(kept for the backward pass, workspace beside it) of one micro-batch."""
    data, mix = recipe.data, mixture(recipe.data)
    tokens = data.rows_per_micro * data.row_length
    layer = layer_bytes(config, data.rows_per_micro, data.row_length, bf16)
    stream = tokens * config.hidden_size * FP32
    depth = config.num_hidden_layers
    layers = depth * stream + layer if recipe.checkpointing else depth * layer
    levels = recipe.loss.head_batch_mul or config.fm_head_batch_mul
    head = head_bytes(config, max(1, round(tokens * mix.image_share)) * levels, bf16)
    text = tokens * mix.documents * mix.text
    logits = LOGIT_COPIES * FP32 * text * config.vocab_size
    return layers + head + 3 * stream, logits + layer / 2


def _working_copies(
    recipe: Recipe,
    config: NextStepConfig,
    parameters: Parameters,
    split: int,
    micro: int,
    bf16: bool,
) -> tuple[float, float]:
    """Bytes of gathered or cast weights, and of gradients that are not split."""
    each = BF16 if bf16 else FP32
    outside = parameters.total - parameters.backbone
    if split == 1:
        return (BF16 * parameters.total if bf16 else 0), 0.0
    layer = parameters.backbone / config.num_hidden_layers
    # The layer that computes and the one that is gathered for the next.
    inside = 2 * layer if recipe.parallel.reshard_after_forward else parameters.backbone
    whole = micro > 1 and not recipe.parallel.reduce_every_batch
    sums = FP32 * parameters.trained if whole else FP32 * (outside + 2 * layer)
    return each * (outside + inside), sums


def _optimizer_bytes(recipe: Recipe, parameters: Parameters) -> float:
    if recipe.optimizer.name == "adamw":
        return 2 * FP32 * parameters.trained
    # Muon keeps one mean of hidden matrices, AdamW two of all else.
    hidden = min(parameters.backbone + parameters.head, parameters.trained)
    return FP32 * hidden + 2 * FP32 * (parameters.trained - hidden)


def _encoder_workspace(recipe: Recipe, bf16: bool) -> float:
    """The image tokenizer and the widest feature map of the pictures it encodes at once."""
    from nextstep.image.autoencoder import Autoencoder
    from nextstep.recipe.counting import autoencoder_config, on_meta

    if all(source.latents for source in recipe.data.sources):
        return 0.0
    config = autoencoder_config(recipe)
    weights = size_of(on_meta(Autoencoder, config)) * (BF16 if bf16 else FP32)
    data = recipe.data
    tokens = data.rows_per_micro * data.row_length * mixture(data).image_share
    pixels = tokens * config.token_pixels**2
    return weights + WIDEST_COPIES * pixels * config.block_channels[0] * (BF16 if bf16 else FP32)
