"""`nextstep lab scaling`: the law is found again, and a tiny study runs to its card."""

from __future__ import annotations

import numpy as np
import pytest

from nextstep.lab.scaling import Law, fit


def test_fit_finds_the_law_that_made_the_points() -> None:
    law = Law(0.2, 40.0, 0.45, 300.0, 0.5)
    N, D = np.meshgrid([2e5, 8e5, 3e6, 1e7], [2e5, 8e5, 2e6, 6e6])
    found = fit(N.ravel().tolist(), D.ravel().tolist(), law(N, D).ravel().tolist())
    assert found.alpha == pytest.approx(law.alpha, rel=0.02)
    assert found.beta == pytest.approx(law.beta, rel=0.02)
    assert found(1e8, 1e8) == pytest.approx(law(1e8, 1e8), rel=0.01)


def test_a_law_tells_how_many_positions_a_loss_is_worth() -> None:
    law = Law(0.2, 40.0, 0.45, 300.0, 0.5)
    assert law.positions(1e6, law(1e6, 3e6)) == pytest.approx(3e6)
    assert law.positions(1e6, 0.1) is None
