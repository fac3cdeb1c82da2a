"""One step on tensors without storage, to see how much memory it would take.

The real losses run forward and backward, and every storage that comes and goes is counted; nothing
is computed. So the count follows the code, whatever it keeps, casts or computes twice.

Legend: tensors lie on the meta device: shapes as in training, no storage; sizes are in bytes.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from nextstep.config import NextStepConfig
from nextstep.data.documents import Document
from nextstep.text.sequence import IGNORE, ImageSpan, Sequence

if TYPE_CHECKING:
    from nextstep.model.nextstep import NextStepModel
    from nextstep.recipe.schema import Recipe
    from nextstep.train.stages.pretrain import PreparedBatch
    from nextstep.train.stages.tokenizer import PictureBatch
    from nextstep.vae.config import AutoencoderConfig


@dataclass(frozen=True)
class Peak:
    """Bytes beside the weights.

    Attributes:
        kept: there at the end of the forward pass.
        highest: the most that was there at once, gradients left out.
        gradients: of those weights that have one when it is highest.
    """

    kept: float
    highest: float
    gradients: float


class StorageCounter(TorchDispatchMode):
    """Counts the bytes of all storages that operations make and that still live.

    Args:
        known: tensors that are not counted.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.known = {_place(tensor) for tensor in known}
        self.live = self.highest = self.gradients = self.gradients_then = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._meet(tensor)
        if self.live > self.highest:
            self.highest, self.gradients_then = self.live, self.gradients
        return out

    def _meet(self, tensor: Tensor) -> None:
        place = _place(tensor)
        if place in self.sizes or place in self.known:
            return
        storage = tensor.untyped_storage()
        self.sizes[place] = storage.nbytes()
        self.live += storage.nbytes()
        weakref.finalize(storage, self._part, place)

    def _part(self, place: int) -> None:
        self.live -= self.sizes.pop(place, 0)


def _place(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def measure(
    losses: Callable[[], dict[str, Tensor]], module: nn.Module, counter: StorageCounter
) -> Peak:
    """Run losses forward and backward inside a `FakeTensorMode` and count.

    Args:
        losses: as a stage gives them.
        module: whose weights they are of.
        counter: that knows the weights.
    """
    with counter:
        total = sum(losses().values())
        kept = counter.live
        assert isinstance(total, Tensor)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(functools.partial(_count, counter))
        total.backward()
    return Peak(kept, counter.highest - counter.gradients_then, counter.gradients_then)


def _count(counter: StorageCounter, parameter: Tensor) -> None:
    assert parameter.grad is not None
    counter.gradients += parameter.grad.numel() * parameter.grad.element_size()


@functools.lru_cache(maxsize=32)
def sequence_peak(
    config: NextStepConfig,
    lengths: tuple[tuple[int, int, int], ...],
    rows: int,
    row_length: int,
    levels: int,
    *,
    bf16: bool,
    cast: bool,
    packed: bool,
    checkpointing: bool,
    compiled: bool = False,
) -> Peak:
    """What a micro-batch takes beside weights.

    Two layers are run; each further one takes what the second one took.

    Args:
        config: of the model.
        lengths: (text ids, image tokens, trained ones) of documents, dealt out in turn until the
            rows are full.
        rows, row_length: of the micro-batch.
        levels: noise levels per image token.
        bf16: compute in bf16.
        cast: weights are fp32 and cast where they are used; otherwise they come in bf16 already,
            as sharded weights do.
        packed: attention by groups of documents, as on a CPU, instead of one kernel for whole rows.
        checkpointing: activations are computed a second time.
        compiled: layers and flow head run as they are written for the compiler.
    """
    from nextstep.model.nextstep import NextStepModel
    from nextstep.train.stages.pretrain import PretrainStage

    stage = PretrainStage(config, row_length=row_length, head_batch_mul=levels)
    batch = stage.prepare(made_up_rows(stage, lengths, rows, row_length), "cpu")
    if packed:
        # Made now, because what is looked up by value needs storage.
        batch.documents.head_rows(config.num_attention_heads, config.num_key_value_heads)
    else:
        batch = _whole_rows(batch)
    live: list[int] = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        with _default_dtype(torch.bfloat16 if bf16 and not cast else torch.float32):
            # Learned positions are looked at by value, and keep nothing.
            two_layers = config.with_values(num_hidden_layers=2, image_position_side=0)
            model = NextStepModel(two_layers).train()
        model.gradient_checkpointing = checkpointing
        if compiled:
            _written_for_the_compiler(model)
        counter = StorageCounter([*model.parameters(), *model.buffers()])
        for module in (model.layers[1], model.norm):
            module.register_forward_pre_hook(lambda *_: live.append(counter.live))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            two = measure(lambda: stage.losses(model, batch), model, counter)
    more = (config.num_hidden_layers - 2) * (live[1] - live[0])
    return Peak(two.kept + more, two.highest + more, two.gradients)


def _written_for_the_compiler(model: NextStepModel) -> None:
    """Run layers and flow head as `compile_training` makes them run, without the compiler."""
    from nextstep.model.backbone import Layer
    from nextstep.model.fused import Fused, can_fuse, finish, project
    from nextstep.model.fused_head import flow_error

    model.flow_error = flow_error
    if can_fuse(model.config):
        for layer in model.layers:
            assert isinstance(layer, Layer)
            layer.fused = Fused(project, finish)


def tokenizer_peak(recipe: Recipe, config: AutoencoderConfig, crops: int) -> Peak:
    """What a micro-batch of crops takes beside weights in the tokenizer stage."""
    from nextstep.recipe.tokenizer_parts import tokenizer_stage
    from nextstep.vae.autoencoder import Autoencoder
    from nextstep.vae.perceptual import FeatureNet

    bf16 = recipe.precision == "bf16"
    with FakeTensorMode():
        stage = tokenizer_stage(recipe, config, FeatureNet())
        model = stage.trainee(Autoencoder(config)).train()
        batch = made_up_crops(recipe, config, crops)
        counter = StorageCounter([*model.parameters(), *_own(stage.features)])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return measure(lambda: stage.losses(model, batch), model, counter)


@functools.lru_cache(maxsize=8)
def encoding_peak(config: AutoencoderConfig, pictures: int, side: int, *, bf16: bool) -> float:
    """Bytes beside the weights while square pictures are encoded together."""
    from nextstep.vae.tokenizer import ImageTokenizer

    with FakeTensorMode():
        with _default_dtype(torch.bfloat16 if bf16 else torch.float32):
            tokenizer = ImageTokenizer(config)
        counter = StorageCounter(_own(tokenizer))
        pixels = torch.zeros(pictures, 3, side, side)
        with counter, torch.no_grad():
            tokenizer.encode_tokens(pixels)
    return float(counter.highest)


def made_up_crops(recipe: Recipe, config: AutoencoderConfig, crops: int) -> PictureBatch:
    """A prepared micro-batch without content."""
    from nextstep.train.stages.tokenizer import PictureBatch

    assert recipe.tokenizer is not None
    size = recipe.tokenizer.crops.size
    small = size // config.down_factor
    noise = torch.zeros(crops, config.latent_channels, small, small)
    return PictureBatch(
        torch.zeros(crops, 3, size, size),
        (0,) * crops,
        recipe.steps,
        torch.zeros(crops, 1, 1, 1),
        noise,
        None if config.deterministic else noise,
    )


def _own(module: nn.Module | None) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()] if module is not None else []


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New floating-point tensors are of this dtype inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _whole_rows(batch: PreparedBatch) -> PreparedBatch:
    """Plain causal attention: one fused kernel, which keeps what the GPU's kernel keeps."""
    return replace(batch, documents=None)  # type: ignore[arg-type]


def made_up_rows(
    stage: Any, lengths: tuple[tuple[int, int, int], ...], rows: int, row_length: int
) -> Any:
    """Rows full of documents of the given lengths, in turn."""
    made, turn = [], 0
    for _ in range(rows):
        row: list[tuple[Document, list[Tensor]]] = []
        used = 0
        while True:
            text, image, targets = lengths[turn % len(lengths)]
            if used + text + image > row_length:
                break
            row.append(_document(stage.config, text, image, targets))
            used += text + image
            turn += 1
        made.append(row)
    return stage.batch_of(made)


def _document(
    config: NextStepConfig, text: int, image: int, targets: int
) -> tuple[Document, list[Tensor]]:
    ids = [config.eos_id] * text + [config.image_placeholder_id] * image
    labels = [config.eos_id] * text + [IGNORE] * image
    parts = [(text, image - targets, False), (text + image - targets, targets, True)]
    spans = [ImageSpan(first, (1, size), trained) for first, size, trained in parts if size]
    pictures = [torch.zeros(span.grid[1], config.token_size) for span in spans]
    return Document("", Sequence(ids, labels, spans)), pictures
