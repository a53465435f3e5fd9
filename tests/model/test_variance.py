"""Networks with a learned variance: the first half of their channels is the prediction."""

from __future__ import annotations

import pytest
import torch

import fastscore as fs
from fastscore.model.variance import FirstHalf


class Net(torch.nn.Module):
    """An eps of its own in the first channels, something else behind them."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.scale, self.parts = torch.nn.Parameter(torch.tensor(0.3)), parts

    def forward(self, u, c_noise, cond):
        return torch.cat([self.scale * u, *[torch.full_like(u, 7.0)] * (self.parts - 1)], dim=1)


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4), (1, 8)])
def test_samples_are_those_of_the_first_half(shape):
    def draw(net):
        return fs.Sampler(fs.ScoreModel(net, shape, fs.discrete_vp()), steps=4, batch=4).run(range(4))

    assert torch.equal(draw(FirstHalf(Net(2))), draw(Net(1)))


@pytest.mark.parametrize("parts", [1, 3])
def test_another_number_of_channels_is_refused(parts):
    with pytest.raises(ValueError, match="not twice its channels"):
        FirstHalf(Net(parts))(torch.zeros(2, 3, 4, 4), torch.zeros(2))


def test_weights_are_the_networks_own():
    net = Net(2)
    assert [*FirstHalf(net).parameters()] == [net.scale]
