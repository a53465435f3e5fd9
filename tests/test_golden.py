"""Parity with recorded runs of score_sde_pytorch, EDM, k-diffusion and diffusers."""

from __future__ import annotations

import golden
import pytest

NAMES = list(golden.recorded()[0])
COVERED = [n for n in NAMES if golden.build(golden.recorded()[0][n], golden.recorded()[1]) is not None]


@pytest.mark.parametrize("name", COVERED)
def test_recorded_run(name, record_property):
    ours, recorded, case = golden.run(name)
    error = float((ours - recorded).abs().max() / recorded.abs().max())
    record_property("relative error", error)
    print(f"{name}: relative error {error:.1e}, tolerance {case.tolerance:.0e}")
    assert error < case.tolerance


def test_every_run_without_adaptive_steps_is_covered():
    settings = golden.recorded()[0]
    left = {n for n in NAMES if n not in COVERED}
    assert all(settings[n]["kind"] == "ode" or settings[n]["fn"] == "sample_dpm_adaptive" for n in left)
    if golden.FOLDER.exists():
        assert len(COVERED) == 66
