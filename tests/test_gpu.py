"""On a CUDA device the reference gives the same bits as on the CPU."""

from __future__ import annotations

import pytest
import torch

from fastscore.grid import karras
from fastscore.model import ScoreModel
from fastscore.noise import NoiseKey
from fastscore.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.schedule import EDM
from fastscore.solvers import DPMpp2M, Heun, Langevin, PredictorCorrector, ReverseDiffusion

pytestmark = pytest.mark.gpu


def test_noise_bits():
    ids = [0, 1, 2**40, 2**63 - 1]
    cpu, cuda = (NoiseKey.of(2**64 - 3, ids, device).normal(5, 1001) for device in ("cpu", "cuda"))
    assert torch.equal(cpu, cuda.cpu())


@pytest.mark.parametrize(
    "solver", [DPMpp2M(), Heun(), PredictorCorrector(ReverseDiffusion(), Langevin())], ids=["2m", "heun", "pc"]
)
def test_trajectories_of_an_elementwise_network(solver):
    m = ScoreModel(lambda u, t, cond: u / (1.0 + u * u), (3, 16, 16), EDM(), Parametrization("edm", "log_sigma/4"))
    cpu, cuda = (
        Sampler(m, solver=solver, grid=karras(8), batch=8, device=device).run(range(12)) for device in ("cpu", "cuda")
    )
    assert torch.equal(cpu, cuda.cpu())
