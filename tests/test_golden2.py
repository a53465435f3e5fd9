"""Parity with recorded runs of ComfyUI and diffusers, every one of them accounted for."""

from __future__ import annotations

import golden2
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # the recorded grids are those of their codes
NAMES = [name for name in golden2.recorded()[0] if golden2.reason(name) is None]


@pytest.mark.thirds
@pytest.mark.parametrize("name", NAMES)
def test_recorded_run(name, record_property):
    ours, recorded, case = golden2.run(name)
    error = float((ours - recorded).abs().max() / recorded.abs().max())
    record_property("relative error", error)
    print(f"{name}: relative error {error:.1e}, tolerance {case.tolerance:.0e}")
    assert error < case.tolerance


def test_every_run_is_reproduced_or_has_a_reason():
    assert {*golden2.ALWAYS} <= {*NAMES}
    if golden2.FOLDER.exists():
        assert len(golden2.recorded()[0]) == 135
        assert all(any(name.startswith(start) for name in golden2.recorded()[0]) for start in golden2.LATER)
