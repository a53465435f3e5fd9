"""Parity with recorded runs of score_sde_pytorch, EDM, k-diffusion and diffusers."""

from __future__ import annotations

import golden
import pytest

NAMES = list(golden.recorded()[0])


@pytest.mark.thirds
@pytest.mark.parametrize("name", NAMES)
def test_recorded_run(name, record_property):
    ours, recorded, case = golden.run(name)
    error = float((ours - recorded).abs().max() / recorded.abs().max())
    record_property("relative error", error)
    print(f"{name}: relative error {error:.1e}, tolerance {case.tolerance:.0e}")
    assert error < case.tolerance


def test_every_run_is_there():
    if golden.FOLDER.exists():
        assert len(NAMES) == 70
