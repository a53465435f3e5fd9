"""Serving on CUDA devices that are not there (tests/oracles/fake_cuda.py): recorded ticks, bits, and who waits."""

from __future__ import annotations

import pytest
import torch
from fake_cuda import FakeCuda
from torch import Tensor, nn

import fastscore as fs


class Net(nn.Module):
    """Element by element, so that values are those of a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, u: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        shift = 0.0 if cond is None else 0.1 * cond.to(u)[:, None]
        return self.weight * torch.atan(u) + shift


def served(net: nn.Module, graph: str) -> tuple[Tensor, fs.Engine]:
    reads = fs.Parametrization("edm", "log_sigma/4")
    model = fs.ScoreModel(net, (2,), fs.EDM(), reads, classes=3, null=3)
    plans = (
        {"solver": fs.DDIM(), "steps": 12}, {"solver": fs.DDIM(1.0), "steps": 9}, {"steps": 14},
        {"solver": "heun", "steps": 6}, {"solver": fs.DDIM(), "steps": 7, "guidance": fs.Guidance(2.0)},
    )  # fmt: skip
    samplers = [fs.Sampler(model, batch=3, backend="reference", **settings) for settings in plans]
    engine = fs.Engine(model, batch=3, backend="reference", graph=graph)
    ids = [[10 * k, 10 * k + 1] for k in range(5)] + [[10 * k + 5] for k in range(5)]
    handles = [engine.submit(samplers[k % 5], at, seed=k % 5, labels=k % 3) for k, at in enumerate(ids)]
    return torch.cat([handle.result().cpu() for handle in handles]), engine


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this grid")
def test_recorded_ticks_on_a_card_give_the_bits_of_a_cpu():
    expected, _ = served(Net(), "off")
    for graph in ("off", "auto"):
        with FakeCuda() as fake:
            x, engine = served(Net().to("cuda:1"), graph)
            assert torch.equal(x, expected) and fake.current_device() == 0
            replays = [call.kind for call in fake.calls].count("replay")
            assert replays == 0 if graph == "off" else 2 * replays > engine.ticks
            # The host reads where samples leave, and nowhere else.
            back = [name for name in fake.syncs if name.startswith("copy from cuda")]
            assert len(back) <= 2 * 15 + 10
