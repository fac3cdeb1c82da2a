"""Packed weights: exact formats, products that know no neighbours, loading and saving."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nextstep.engine.backends.base import CacheRow, Place
from nextstep.engine.backends.cpu_kernels import core_of
from nextstep.engine.pretrained import Parts, save_parts
from nextstep.errors import ModelFileError, NextStepError
from nextstep.kernels import build, formats, linear
from nextstep.kernels.linear import PackedLinear, WeightBuffer, packed_bytes
from nextstep.kernels.packing import FORMATS, pack, quantise, unpack
from nextstep.model.cache import KVCache
from nextstep.model.checkpoints import load_model
from nextstep.model.quantization import pack_model, quantised
from tests.conftest import PACKABLE, random_model

kernels = pytest.mark.skipif(not build.is_available(), reason=build.why_not())
SHAPES = [(32, 64), (48, 16), (80, 208), (16, 320)]


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("shape", [*SHAPES, (5, 7)])
def test_packing_loses_nothing_more(format_: str, shape: tuple[int, int]) -> None:
    rounded = quantise(draws(*shape), format_)
    again = unpack(format_, *pack(rounded), *shape)
    assert torch.equal(again.values, rounded.values)
    assert torch.equal(again.scale, rounded.scale)


def test_rounding_errors_are_bounded_by_the_scales() -> None:
    weight = draws(48, 200)
    error = (quantise(weight, "int8").restored() - weight).abs()
    assert bool((error <= weight.abs().amax(1, keepdim=True) / 127 * 0.5001).all())
    groups = F.pad(weight, (0, 56)).view(48, 4, 64)
    step = (groups.abs().amax(2, keepdim=True) / 8).expand_as(groups).reshape(48, 256)[:, :200]
    error = (quantise(weight, "int4").restored() - weight).abs()
    # The side without the largest number ends at 7 steps; scales have 8 bits.
    assert bool((error <= step * 1.05).all())
    assert float(error.mean()) < float(step.mean()) * 0.3


def test_nothing_is_rounded_to_nothing() -> None:
    for format_ in FORMATS:
        assert not quantise(torch.zeros(16, 64), format_).restored().any()


@kernels
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_the_rounded_weights(format_: str, shape: tuple[int, int]) -> None:
    layer = PackedLinear(draws(*shape), draws(shape[0], seed=1), format_, WeightBuffer())
    for rows in (1, 3, 8, 17, 50, 200):
        x = draws(rows, shape[1], seed=rows)
        seen = x.bfloat16() if format_ == "bf16" else x
        right = F.linear(seen.double(), layer.weight.double(), layer.bias.double())
        # Integer formats see a row's values in 15 bits.
        allowed = (1e-4 if format_.startswith("int") else 2e-6) * float(right.abs().max())
        assert float((layer(x) - right).abs().max()) <= allowed


@kernels
@pytest.mark.parametrize("format_", FORMATS)
def test_a_row_knows_neither_neighbours_nor_threads(format_: str) -> None:
    # As many rows as are shared out among threads and in turns, inputs in parts of unlike length.
    layer = PackedLinear(draws(176, 592), None, format_, WeightBuffer())
    x, threads = draws(900, 592, seed=2), torch.get_num_threads()
    together = layer(x)
    for rows in (1, 2, 7, 16, 33, 67, 129, 451):
        assert torch.equal(layer(x[:rows]), together[:rows])
        assert torch.equal(layer(x[-rows:]), together[-rows:])
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(layer(x), together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("format_", FORMATS)
def test_without_kernels_products_are_the_same(
    format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = PackedLinear(draws(48, 80), draws(48, seed=1), format_, WeightBuffer()), draws(3, 80)
    monkeypatch.setattr(build, "is_available", lambda: False)
    right = F.linear(x, layer.weight.float(), layer.bias)
    assert float((layer(x) - right).abs().max()) < 1e-4


@pytest.mark.parametrize("format_", FORMATS)
def test_large_matrices_are_packed_in_parts(format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = draws(144, 80)
    whole = PackedLinear(weight, None, format_, WeightBuffer())
    monkeypatch.setattr(linear, "AT_ONCE", 80 * 40)
    parts = PackedLinear(weight, None, format_, WeightBuffer())
    assert torch.equal(parts.data, whole.data)
    assert torch.equal(parts.scale, whole.scale)


@pytest.mark.parametrize("format_", ["int8", "int4"])
def test_weights_are_rounded_while_they_are_read(
    tiny_parts: Parts, tmp_path: Path, format_: str
) -> None:
    parts = tiny_parts._replace(model=random_model(PACKABLE))
    save_parts(parts, tmp_path / "model")
    early = load_model(tmp_path / "model", torch.float32, quantize=format_)
    late = load_model(tmp_path / "model", torch.float32)
    whole = packed_bytes(late)
    pack_model(late, *formats(format_))
    assert quantised(early) == quantised(late) == format_
    assert packed_bytes(early) == packed_bytes(late) < whole
    ids = torch.tensor([[7, 8, 9]])
    assert torch.equal(early.hidden(early.embed(ids)), late.hidden(late.embed(ids)))
    with pytest.raises(ModelFileError, match="sampling alone"):
        save_parts(parts._replace(model=early), tmp_path / "again")


def test_packing_without_loss_can_be_saved(tiny_parts: Parts, tmp_path: Path) -> None:
    model = random_model(replace(PACKABLE, tie_word_embeddings=True))
    right = {name: value.clone() for name, value in model.state_dict().items()}
    pack_model(model, "fp32")
    assert quantised(model) == ""
    save_parts(tiny_parts._replace(model=model), tmp_path / "model")
    again = load_model(tmp_path / "model").state_dict()
    assert again.keys() == right.keys()
    assert all(torch.equal(again[name], value) for name, value in right.items())


def test_formats_are_refused_in_words() -> None:
    assert formats("int4/int8") == ("int4", "int8")
    for bad in ("int3", "int8/", "int8/int8/int8", ""):
        with pytest.raises(NextStepError, match="choose from int8, int4, bf16"):
            formats(bad)


def test_free_memory_of_the_heap_goes_back() -> None:
    """Small things between large ones keep a heap from shrinking by itself."""
    code = (
        "from nextstep.kernels.linear import release_heap\n"
        "def size(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "both = [(bytearray(100_000), bytearray(1000)) for _ in range(1000)]\n"
        "kept = [small for _, small in both]\n"
        "del both\n"
        "before = size(); release_heap(); print(before - size())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 50_000_000


def cores() -> list[int]:
    """Processor cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Every core has a process that never rests."""
    spin = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    others = [subprocess.Popen([sys.executable, "-c", spin, str(core)]) for core in cores()]
    try:
        time.sleep(0.3)
        yield
    finally:
        for one in others:
            one.kill()
            one.wait()


@kernels
@pytest.mark.skipif(not 2 <= len(cores()) <= 8, reason="needs two to eight cores")
def test_threads_that_wait_leave_the_core_to_others() -> None:
    """With the runtime's own barrier, which spins for milliseconds, this took 6.7 s."""
    model = random_model(PACKABLE)
    pack_model(model, "fp32")
    embedded = draws(2, PACKABLE.hidden_size)
    core, cache = core_of(model), KVCache(PACKABLE, 1, 4, torch.float32)
    assert core is not None
    places = [Place(CacheRow(cache), position) for position in range(2)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(len(cores()))
        core.feed(embedded, places)  # compiles, if need be
        with busy_cores():
            begin = time.perf_counter()
            for _ in range(100):
                core.feed(embedded, places)
            taken = time.perf_counter() - begin
    finally:
        torch.set_num_threads(before)
    assert taken < 3, "100 passes of 20 meetings each"
