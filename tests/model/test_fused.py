"""Compiled training: the same losses and gradients, and a plain path wherever it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextstep.config import NextStepConfig
from nextstep.data.documents import Document
from nextstep.model.adapter_config import AdapterConfig
from nextstep.model.chunked_sum import sum_in_parts
from nextstep.model.fused import can_compile, product, weight_gradient
from nextstep.model.lora import add_adapter
from nextstep.model.nextstep import TOKENS_AT_ONCE, NextStepModel
from nextstep.text.sequence import Text, build_sequence, editing, text_to_image
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.stages.pretrain import PretrainStage
from tests.conftest import TINY, random_model

WITHOUT_BIAS = TINY.with_values(attention_bias=False, num_key_value_heads=4)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[..., Tensor]]]:
    """What would be compiled runs as it is written; the list says what was asked for."""
    asked: list[Callable[..., Tensor]] = []

    def compiled(function: Callable[..., Tensor], **_: object) -> Callable[..., Tensor]:
        asked.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr("nextstep.model.nextstep.can_compile", lambda device: True)
    monkeypatch.setitem(TOKENS_AT_ONCE, "cpu", 5)
    yield asked


def losses_and_gradients(
    model: NextStepModel, tokenizer: TextTokenizer, dtype: torch.dtype | None = None, **settings
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of two packed rows of text, a picture and an edit, with padding."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number, texts in enumerate((["a red apple", "make it blue"], ["two cats"])):
        row = []
        for text in texts:
            for parts in (
                [Text(text)],
                text_to_image(text, (2, 3)),
                editing(text, [(1, 2)], (2, 2)),
            ):
                sequence = build_sequence(parts, tokenizer)
                pictures = [torch.randn(s.count, 64, generator=generator) for s in sequence.images]
                images = tuple(range(len(pictures)))
                row.append((Document(f"{text}/{number}", sequence, images, 5 + number), pictures))
        rows.append(row)
    stage = PretrainStage(model.config, row_length=160, head_batch_mul=3, **settings)
    batch = stage.prepare(stage.batch_of(rows), "cpu")
    model.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        losses = stage.losses(model.train(), batch)
    sum(losses.values()).backward()
    named = model.named_parameters()
    return losses, {name: p.grad.clone() for name, p in named if p.grad is not None}


def assert_same(
    found: tuple[dict[str, Tensor], dict[str, Tensor]],
    expected: tuple[dict[str, Tensor], dict[str, Tensor]],
    bound: float = 1e-5,
) -> None:
    for name, loss in expected[0].items():
        assert float((found[0][name] - loss).detach()) == pytest.approx(
            0, abs=0.1 * bound * float(loss.detach())
        ), name
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert float((found[1][name] - gradient).norm() / gradient.norm()) < bound, name


@pytest.mark.parametrize("config", [TINY, WITHOUT_BIAS], ids=["grouped", "no_bias"])
@pytest.mark.parametrize("attention", ["groups", "mask"])
def test_the_same_losses_and_gradients(
    text_tokenizer: TextTokenizer, uncompiled: list, config: NextStepConfig, attention: str
) -> None:
    model = random_model(config).requires_grad_(True)
    expected = losses_and_gradients(model, text_tokenizer, attention=attention)
    found = losses_and_gradients(model, text_tokenizer, attention=attention, compile=True)
    assert len(uncompiled) == 3
    assert_same(found, expected)
    losses_and_gradients(model, text_tokenizer, compile=True)
    assert len(uncompiled) == 3


def test_the_same_when_traced(
    text_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All that compiling does but for writing the code, which takes a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr("nextstep.model.nextstep.can_compile", lambda device: True)
    model = random_model(TINY.with_values(fm_head_layers=1)).requires_grad_(True)
    expected = losses_and_gradients(model, text_tokenizer)
    assert_same(losses_and_gradients(model, text_tokenizer, compile=True), expected)


def test_half_precision_is_as_near_as_without(
    text_tokenizer: TextTokenizer, uncompiled: list
) -> None:
    model = random_model(TINY).requires_grad_(True)
    exact = losses_and_gradients(model, text_tokenizer)
    half = losses_and_gradients(model, text_tokenizer, torch.bfloat16)
    found = losses_and_gradients(model, text_tokenizer, torch.bfloat16, compile=True)
    for name, gradient in exact[1].items():
        error, other = (
            float((made[1][name] - gradient).norm() / gradient.norm()) for made in (found, half)
        )
        assert error < 1.5 * other + 2e-3, name


def test_gradient_checkpointing_changes_nothing(
    text_tokenizer: TextTokenizer, uncompiled: list
) -> None:
    model = random_model(TINY).requires_grad_(True)
    expected = losses_and_gradients(model, text_tokenizer, compile=True)
    model.gradient_checkpointing = True
    assert_same(losses_and_gradients(model, text_tokenizer, compile=True), expected, 1e-7)


def test_frozen_parts_stay_without_gradients(
    text_tokenizer: TextTokenizer, uncompiled: list
) -> None:
    model = random_model(TINY).requires_grad_(True)
    model.image_head.requires_grad_(False)
    model.layers[0].mlp.requires_grad_(False)
    expected = losses_and_gradients(model, text_tokenizer)
    assert_same(losses_and_gradients(model, text_tokenizer, compile=True), expected)


def test_a_head_is_trained_alone_on_a_frozen_backbone(
    text_tokenizer: TextTokenizer, uncompiled: list
) -> None:
    model = random_model(TINY).requires_grad_(False)
    model.image_head.requires_grad_(True)
    expected = losses_and_gradients(model, text_tokenizer)
    assert all(name.startswith("image_head.") for name in expected[1])
    assert_same(losses_and_gradients(model, text_tokenizer, compile=True), expected)


def test_an_adapter_is_trained_all_the_same(
    text_tokenizer: TextTokenizer, uncompiled: list
) -> None:
    pytest.importorskip("peft")
    model = random_model(TINY)
    add_adapter(model, AdapterConfig(rank=2))
    expected = losses_and_gradients(model, text_tokenizer)
    assert any("image_head" in name for name in expected[1])
    found = losses_and_gradients(model, text_tokenizer, compile=True)
    assert all(torch.equal(found[1][name], g) for name, g in expected[1].items())


def test_a_hook_is_heard(text_tokenizer: TextTokenizer, uncompiled: list) -> None:
    model = random_model(TINY).requires_grad_(True)
    heard: list[str] = []
    for module in (model.layers[1].mlp.up_proj, model.image_head.net.cond_embed):
        module.register_forward_hook(lambda *_: heard.append("called"))
    losses_and_gradients(model, text_tokenizer, compile=True)
    assert len(heard) == 2


def test_a_model_with_other_biases_keeps_its_layers(
    text_tokenizer: TextTokenizer, uncompiled: list
) -> None:
    model = random_model(TINY.with_values(mlp_bias=True)).requires_grad_(True)
    expected = losses_and_gradients(model, text_tokenizer)
    assert_same(losses_and_gradients(model, text_tokenizer, compile=True), expected)
    assert model.layers[0].fused is None


def test_without_a_compiler_training_goes_on(
    text_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(
            "CppCompileError: C++ compile error\n\nCommand:\ng++ /tmp/x/main.cpp -o x.so\n\n"
            "Output:\n/tmp/x/main.cpp:2:10: fatal error: Python.h: No such file or directory\n"
        )

    monkeypatch.setattr(torch, "compile", broken)
    can_compile.cache_clear()
    model = random_model(TINY).requires_grad_(True)
    expected = losses_and_gradients(model, text_tokenizer)
    with pytest.warns(UserWarning, match=r"\(/tmp/x/main.cpp:2:10: fatal error: Python.h: No such"):
        found = losses_and_gradients(model, text_tokenizer, compile=True)
    assert_same(found, expected, 1e-9)
    losses_and_gradients(model, text_tokenizer, compile=True)
    can_compile.cache_clear()


def test_a_gradient_in_fp32_lies_as_its_weight_does() -> None:
    # Else it is copied into place, value by value.
    g, x = torch.randn(6, 9), torch.randn(6, 4)
    assert weight_gradient(g, x).stride() == (4, 1)
    assert torch.allclose(weight_gradient(g, x), g.t() @ x)
    half = weight_gradient(g.bfloat16(), x.bfloat16())
    assert half.stride() == (1, 9)
    assert torch.allclose(half.float(), g.t() @ x, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_product_leaves_its_bias_to_the_loop_behind(dtype: torch.dtype) -> None:
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Tensor]:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op != "placeholder")
        return graph.forward

    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((5, 4), (3, 4), (3,)))
    found = torch.compile(product, backend=backend)(x, weight, bias)
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    bound = 1e-6 if dtype == torch.float32 else 0.05
    assert torch.allclose(found.double(), exact, atol=bound)
    # A sum right behind a product is what compilers put back into it.
    assert any("sub" in name for name in seen) and not any("add" in name for name in seen)


@given(count=st.integers(1, 40), size=st.integers(1, 17))
def test_a_sum_in_parts_is_the_sum(count: int, size: int) -> None:
    generator = torch.Generator().manual_seed(count * 100 + size)
    first, second, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((count, 3), (2, count, 3), (3, 3))
    )

    def function(valid: Tensor, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return (((x @ w) * y).sin().sum(0).sum(1) * valid).sum()

    def gradients(total: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        value = total()
        return value, *torch.autograd.grad(3 * value, (first, weight))

    first.requires_grad_(True)
    weight.requires_grad_(True)
    found = gradients(lambda: sum_in_parts(function, [(first, 0), (second, 1)], [weight], size))
    everything = torch.ones(count, dtype=torch.float64)
    expected = gradients(lambda: function(everything, first, second, weight))
    assert all(
        torch.allclose(a.double(), b, atol=1e-5) for a, b in zip(found, expected, strict=True)
    )
