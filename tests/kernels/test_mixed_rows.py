"""A mixed, masked run through the Triton kernels: the bits of the reference, row after row."""

from __future__ import annotations

import pytest
import torch

from fastscore import plan as plans
from fastscore.engine.loop import Loop
from fastscore.engine.request import Request
from fastscore.execution import Execution
from fastscore.guidance.mixture import BoundPlan, Guidance
from fastscore.model.score import ScoreModel
from fastscore.ops.backend import REFERENCE, Ops
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import EDM
from fastscore.process.grid import karras
from fastscore.process.parametrization import Parametrization
from fastscore.solvers import DDIM, Langevin, PredictorCorrector, ReverseDiffusion

from .conftest import load


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(DDIM(1.0, keep_eps=True), id="ddim", marks=pytest.mark.slow),
        pytest.param(PredictorCorrector(ReverseDiffusion(), Langevin()), id="pc"),
    ],
)
def test_same_bits(solver):
    kernels = load("kernels_interpreter")
    triton = Ops("triton", kernels.update.update_triton, kernels.norms.langevin_triton, REFERENCE.quantize)

    def net(u, t, cond):
        return u / (1.0 + u * u) + 0.1 * cond.to(u)[:, None]

    model = ScoreModel(net, (37,), EDM(), Parametrization("edm", "log_sigma/4"), classes=3, null=3)
    guidance, key = Guidance(1.7, (0.1, 20.0)), NoiseKey.of(5, [4, 0, 2**40])
    bound = BoundPlan(plans.make_plan(solver, EDM(), karras(3)(EDM())), model, guidance)
    found = []
    for ops in (triton, REFERENCE):
        loop = Loop(bound, model, Execution("cpu", 3), ops, known=True)
        y = NoiseKey.of(7, range(3)).normal(0, 37)
        loop.load(Request(key, torch.tensor([0, 1, 2]), known=y, mask=y > 0.3))
        found.append(loop.run())
    assert found[0].isfinite().all()
    assert torch.equal(*found)
