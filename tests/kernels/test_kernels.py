"""Packed weights: exact formats, products that know no neighbours, loading and saving."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nextstep.errors import ModelFileError, NextStepError
from nextstep.kernels import build, linear
from nextstep.kernels.linear import Arena, PackedLinear, packed_bytes
from nextstep.kernels.packing import FORMATS, pack, quantise, unpack
from nextstep.kernels.quantization import formats, pack_model, quantised
from nextstep.model.checkpoints import load_model
from nextstep.model.pretrained import Parts, save_parts
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
    layer = PackedLinear(draws(*shape), draws(shape[0], seed=1), format_, Arena())
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
    layer = PackedLinear(draws(176, 592), None, format_, Arena())
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
    layer, x = PackedLinear(draws(48, 80), draws(48, seed=1), format_, Arena()), draws(3, 80)
    monkeypatch.setattr(build, "is_available", lambda: False)
    right = F.linear(x, layer.weight.float(), layer.bias)
    assert float((layer(x) - right).abs().max()) < 1e-4


@pytest.mark.parametrize("format_", FORMATS)
def test_large_matrices_are_packed_in_parts(format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = draws(144, 80)
    whole = PackedLinear(weight, None, format_, Arena())
    monkeypatch.setattr(linear, "AT_ONCE", 80 * 40)
    parts = PackedLinear(weight, None, format_, Arena())
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


def refuse(error: Exception) -> Callable[..., object]:
    def kernels() -> object:
        raise error

    return kernels


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("compiler", lambda: "no-such-compiler", "no compiler no-such-compiler"),
        ("kernels", refuse(subprocess.CalledProcessError(1, "g++", "", "a\nb")), "g\\+\\+: b"),
        ("kernels", refuse(OSError("no room")), "written or loaded: no room"),
    ],
)
def test_a_machine_that_could_says_why_it_does_not(
    name: str, value: object, word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(build.SWITCH, raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "target", lambda: build.AVX512)
    monkeypatch.setattr(shutil, "which", lambda name: None if name.startswith("no") else name)
    monkeypatch.setattr(build, "library_file", lambda: tmp_path / "none.so")
    monkeypatch.setattr(build, name, value)
    with pytest.warns(UserWarning, match=word):
        reason = build.why_not.__wrapped__()
    monkeypatch.setattr(build, "why_not", lambda: reason)
    assert build.is_hindered() and not build.is_available()


def test_a_machine_with_less_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    target = build.target.__wrapped__
    able, flags = False, frozenset(build.NEEDED)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: able)
    monkeypatch.setattr(build, "processor_flags", lambda: flags)
    monkeypatch.delenv(build.SWITCH, raising=False)
    assert target() == build.AVX512  # Linux denies the matrix units
    able = True
    assert target() == build.AMX
    monkeypatch.setenv(build.SWITCH, "AVX512")
    assert target() == build.AVX512
    flags = frozenset(build.NEEDED[:-1])
    assert target() == ""
    monkeypatch.setattr(build, "target", lambda: "")
    assert "neither matrix units" in build.why_not.__wrapped__()
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert target() == ""


PRODUCTS = """
import hashlib, torch
from nextstep.kernels.linear import Arena, PackedLinear
def draws(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).bfloat16().float()
for format_ in ("fp32", "bf16", "int8", "int4"):
    for squeezed in (False, True):
        layer, told = PackedLinear(draws(176, 592), None, format_, Arena(), squeezed), b""
        for rows in (1, 3, 16, 40, 130, 300):
            x = draws(rows, 592)
            x[0, :2], x[-1, 3] = torch.tensor((1e-40, -3e38)), 1.5e-38
            told += layer(x).numpy().tobytes()
        print(hashlib.sha256(told).hexdigest())
from nextstep.pipeline import NextStepPipeline
for dtype, quantize in ((torch.bfloat16, None), (torch.float32, "int4/int8")):
    pipeline = NextStepPipeline.from_pretrained("nano", dtype=dtype, quantize=quantize)
    picture = pipeline.generate("a cat", height=32, width=32, seed=1)[0].image
    print(hashlib.sha256(picture.tobytes()).hexdigest())
"""


@pytest.mark.skipif(
    build.target() != build.AMX or not build.is_available(), reason="needs matrix units (AMX)"
)
def test_vectors_compute_what_matrix_units_do() -> None:
    """To the last bit: so a picture is the same on processors with and without them."""

    def told(switch: str) -> str:
        own = {**os.environ, build.SWITCH: switch}
        command = [sys.executable, "-c", PRODUCTS]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=own).stdout

    units = told("on")
    assert len(units.splitlines()) == 10 and told("avx512") == units


def test_who_switched_them_off_is_not_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.SWITCH, "off")
    monkeypatch.setattr(build, "target", lambda: build.AVX512)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reason = build.why_not.__wrapped__()
    monkeypatch.setattr(build, "why_not", lambda: reason)
    assert reason == "NEXTSTEP_KERNELS is off" and not build.is_hindered()


@kernels
def test_what_is_no_library_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, empty = build.library_file(), tmp_path / "kernels.so"
    empty.touch()
    monkeypatch.setattr(build, "library_file", lambda: empty)
    monkeypatch.setattr(build, "_compile", lambda library: shutil.copy(whole, library))
    assert isinstance(build.kernels.__wrapped__(), ctypes.CDLL)
    assert empty.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("value", "right"), [("", ".cache"), ("here/cache", ".cache"), ("/tmp/own", "/tmp/own")]
)
def test_cache_that_is_empty_or_relative_is_unset(
    value: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert build.cache_folder() == Path.home() / right / "nextstep"


def test_cache_folder_is_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "nextstep"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert build.own_folder(folder).stat().st_mode & 0o777 == 0o700
    assert build.own_folder(tmp_path / "new").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        build.own_folder(folder)


def test_library_that_another_user_may_have_planted_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, link = tmp_path / "kernels.so", tmp_path / "link.so"
    assert not build.is_trusted(library)
    library.touch(mode=0o700)
    link.symlink_to(library)
    assert build.is_trusted(library) and not build.is_trusted(link)
    for mode in (0o722, 0o720, 0o702):
        library.chmod(mode)
        assert not build.is_trusted(library)
    library.chmod(0o755)
    owner = library.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert not build.is_trusted(library)


@kernels
def test_planted_library_is_replaced_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, planted = build.library_file(), tmp_path / "kernels.so"
    planted.write_bytes(whole.read_bytes() + b"planted")
    planted.chmod(0o777)
    monkeypatch.setattr(build, "library_file", lambda: planted)
    monkeypatch.setattr(build, "_compile", lambda library: shutil.copy(whole, library))
    build.kernels.__wrapped__()
    assert planted.read_bytes() == whole.read_bytes()


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
