"""Parity with recorded runs of ComfyUI and diffusers, every one of them accounted for."""

from __future__ import annotations

import golden2
import pytest

NAMES = [name for name in golden2.recorded()[0] if golden2.reason(name) is None]


@pytest.mark.parametrize("name", NAMES)
def test_recorded_run(name, record_property):
    ours, recorded, case = golden2.run(name)
    error = float((ours - recorded).abs().max() / recorded.abs().max())
    record_property("relative error", error)
    print(f"{name}: relative error {error:.1e}, tolerance {case.tolerance:.0e}")
    assert error < case.tolerance
