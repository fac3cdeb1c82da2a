"""Every instruction set computes the same to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextstep.kernels import build, targets
from nextstep.kernels.linear import PackedLinear, WeightBuffer
from nextstep.kernels.packing import FORMATS
from tests.kernels.hashes import ARM, PICTURES, PORTABLE, emulated, made_up, nano, portable

OWN = [own for t in targets.TARGETS if (own := targets.best(t.name)) == t]
"""Targets that this machine has."""
several = pytest.mark.skipif(
    not build.is_available() or len(OWN) < 2, reason="needs kernels for two instruction sets"
)
EMULATED = [target for target in targets.TARGETS if emulated(target)]
widths = st.integers(1, 10).map(lambda n: 16 * n)
inputs = st.integers(1, 80).map(lambda n: 16 * n)
"""Up to 1280: the integers of more than 1024 inputs are more than one sum of 32 bits holds."""
rows = st.one_of(st.integers(1, 9), st.integers(10, 140))


def special(x: torch.Tensor) -> torch.Tensor:
    """With a few numbers of the ends of the range in it, small ones too small for a normal one."""
    x[0, :3] = torch.tensor((1e-40, -3e30, 1.2e-38))
    x[-1, 3] = -1.5e-38
    return x


@several
@settings(max_examples=60)
@given(
    st.sampled_from(FORMATS), st.booleans(), st.booleans(), widths, inputs, rows,
    st.integers(0, 2**31),
)  # fmt: skip
def test_products_are_equal_on_every_instruction_set(
    format_: str, short: bool, compressed: bool, N: int, K: int, n: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(N, K, generator=generator)
    layer = PackedLinear(
        weight.bfloat16().float() if short else weight,
        torch.randn(N, generator=generator),
        format_,
        WeightBuffer(),
        compressed=short and compressed,
    )
    x, own = special(torch.randn(n, K, generator=generator)), build.kernels
    made = []
    try:
        for target in OWN:
            build.kernels = lambda target=target: build.load(target)  # type: ignore[misc]
            made.append(layer(x))
    finally:
        build.kernels = own
    for target, other in zip(OWN[1:], made[1:], strict=True):
        assert torch.equal(other.view(torch.int32), made[0].view(torch.int32)), target.title


@several
def test_integers_that_fill_their_sums_are_exact() -> None:
    """All largest: any sum that leaves its bits, or is rounded before its end, is seen."""
    N, K = 32, 1280
    weight, x = torch.ones(N, K), torch.ones(3, K)
    x[1], x[2, ::2] = -1, -1
    for format_ in ("int8", "int4"):
        layer = PackedLinear(
            -weight if format_ == "int4" else weight, None, format_, WeightBuffer()
        )
        right = x.double() @ layer.weight.double().T
        for target in OWN:
            own, build.kernels = build.kernels, lambda target=target: build.load(target)  # type: ignore[misc]
            try:
                assert torch.allclose(layer(x).double(), right, rtol=1e-6), target.title
            finally:
                build.kernels = own


@pytest.mark.skipif(
    not OWN or not shutil.which(targets.compiler()), reason="needs a C++ compiler and AVX2 or NEON"
)
def test_products_layers_and_head_have_the_known_bytes(tmp_path: Path) -> None:
    assert portable(OWN[0], tmp_path) == PORTABLE.read_text()


@pytest.mark.skipif(not EMULATED, reason=f"needs {' and '.join(ARM)}")
@pytest.mark.parametrize("name", ["dotprod", "neon"])
def test_emulated_processor_computes_the_known_bytes(name: str, tmp_path: Path) -> None:
    target = next(target for target in EMULATED if target.name == name)
    assert portable(target, tmp_path) == PORTABLE.read_text()


@pytest.mark.skipif(not build.is_available(), reason="needs the kernels")
@pytest.mark.parametrize("target", OWN, ids=lambda target: target.name)
def test_seed_gives_the_same_tokens_on_every_instruction_set(
    target: targets.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt, guidance, solver and token norm, in every number format."""
    monkeypatch.setattr(build, "kernels", lambda: build.load(target))
    known = json.loads(PICTURES.read_text())
    assert made_up() == {name: known[name] for name in known if name.startswith("tokens")}


@pytest.mark.skipif(not build.is_available(), reason="needs the kernels")
@pytest.mark.parametrize("target", [OWN[0], OWN[-1]] if OWN else [], ids=lambda one: one.name)
def test_nano_draws_the_same_picture_on_every_instruction_set(
    target: targets.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "kernels", lambda: build.load(target))
    known = json.loads(PICTURES.read_text())
    right = {name: known[name] for name in known if name.startswith("nano")}
    assert nano() == right, "for other weights run `python -m tests.kernels.hashes` and commit"
