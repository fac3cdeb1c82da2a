"""bf16 numbers in 12 bits: the same numbers, the same products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextstep.kernels import build
from nextstep.kernels.linear import PackedLinear, WeightBuffer, packed_bytes
from nextstep.kernels.lossless import MAX_OUTLIERS, compress, decompress
from nextstep.kernels.packing import pack, quantise
from nextstep.model import quantization as quantising
from nextstep.model.quantization import MODULATION, pack_model
from tests.conftest import PACKABLE, random_model

pytestmark = pytest.mark.skipif(not build.is_available(), reason=build.why_not())
SHAPES = [(208, 16), (80, 208), (16, 320), (176, 592)]


def weights(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of bf16, some of a size that no other has."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
    numbers[0, 3], numbers[-1, -1], numbers[5, 5] = 1e-30, -3e20, 0
    return numbers


def packed(weight: Tensor, format_: str) -> Tensor:
    return pack(quantise(weight, format_))[0]


@pytest.mark.parametrize("format_", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_compression_is_lossless(format_: str, shape: tuple[int, int]) -> None:
    weight = weights(*shape).float()
    weight[1, :5] = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0, 1e-40])
    data = packed(weight.bfloat16(), format_)
    compressed = compress(data)
    assert compressed is not None and len(compressed.outliers)
    bits = torch.int32 if format_ == "fp32" else torch.int16
    again = decompress(compressed, data.shape, data.dtype)
    assert torch.equal(again.view(bits), data.view(bits))
    assert compressed.data.numel() == -(-data[0].numel() // 1024) * len(data) * 1536


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 80), st.floats(0, 0.01))
def test_any_bits_come_back_or_are_refused(seed: int, N: int, K: int, odd: float) -> None:
    draws = torch.Generator().manual_seed(seed)
    weight = torch.randn(N, K, generator=draws).bfloat16()
    any_bits = torch.randint(-(2**15), 2**15, (N, K), generator=draws).to(torch.int16)
    mixed = torch.where(torch.rand(N, K, generator=draws) < odd, any_bits, weight.view(torch.int16))
    data = packed(mixed.view(torch.bfloat16), "bf16")
    compressed = compress(data)
    if compressed is None:
        high = (data.view(torch.int16).int() >> 8 & 0xFF).flatten().bincount(minlength=256)
        assert int(high.sum() - high.topk(16).values.sum()) > MAX_OUTLIERS * data.numel()
    else:
        again = decompress(compressed, data.shape, data.dtype)
        assert torch.equal(again.view(torch.int16), data.view(torch.int16))


def test_what_would_lose_or_not_pay_stays_as_it_is() -> None:
    finer = weights(32, 64).float()
    finer[7, 7] += 1e-6
    assert compress(packed(finer, "fp32")) is None
    sizes = torch.logspace(-30, 30, 32 * 64).view(32, 64).bfloat16()
    assert compress(packed(sizes, "bf16")) is None
    layer = PackedLinear(finer, None, "fp32", WeightBuffer(), compressed=True)
    assert layer.compressed is None and torch.equal(layer.weight, finer)


@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_whose_numbers_are_bf16_is_read_in_half_of_the_bytes(shape: tuple[int, int]) -> None:
    weight, bias = weights(*shape).float(), torch.randn(shape[0])
    halved = PackedLinear(weight, bias, "fp32", WeightBuffer())
    finer = weight.clone()
    finer[0, 0] += 1e-3
    plain = PackedLinear(finer, bias, "fp32", WeightBuffer())
    assert halved.halved and not plain.halved
    assert packed_bytes(plain) - packed_bytes(halved) == 2 * plain.data.numel()
    assert torch.equal(halved.weight, weight) and torch.equal(plain.weight, finer)
    for rows in (1, 2, 3, 7, 17, 70):
        x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
        assert torch.equal(halved(x)[:, 1:], plain(x)[:, 1:])


@pytest.mark.parametrize("format_", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_have_the_same_bits(format_: str, shape: tuple[int, int]) -> None:
    weight, bias = weights(*shape).float(), torch.randn(shape[0])
    plain = PackedLinear(weight, bias, format_, WeightBuffer())
    compressed = PackedLinear(weight, bias, format_, WeightBuffer(), compressed=True)
    assert compressed.compressed is not None and torch.equal(compressed.weight, plain.weight)
    threads = torch.get_num_threads()
    for rows in (1, 2, 7, 16, 17, 33, 40, 50, 67, 130, 451, 900):
        x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
        right = plain(x)
        assert torch.equal(compressed(x), right)
        try:
            torch.set_num_threads(1 if threads > 1 else 2)
            assert torch.equal(compressed(x), right)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("format_", ["fp32", "bf16"])
def test_a_large_model_is_compressed_and_computes_the_same(
    format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, compressed = random_model(PACKABLE), random_model(PACKABLE)
    for model in (plain, compressed):
        model.load_state_dict({k: v.bfloat16().float() for k, v in plain.state_dict().items()})
    pack_model(plain, format_)
    monkeypatch.setattr(quantising, "LARGE", 0)
    pack_model(compressed, format_)
    for name, part in compressed.named_modules():
        if isinstance(part, PackedLinear):
            assert (part.compressed is None) == (MODULATION in name), name
    assert packed_bytes(compressed) < packed_bytes(plain)
    ids = torch.tensor([[7, 8, 9]])
    assert torch.equal(compressed.hidden(compressed.embed(ids)), plain.hidden(plain.embed(ids)))
    right = plain.state_dict()
    assert all(torch.equal(value, right[name]) for name, value in compressed.state_dict().items())
