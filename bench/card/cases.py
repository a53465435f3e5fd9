"""What P2 captures: networks that every device rounds alike, and the settings of a sampler around each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastscore as fs
from bench.card.card import Card

SHAPE = (3, 16, 16)
STEPS = 6


class Elementwise(nn.Module):
    """A network of operations that every device rounds alike; it has weights, so that it lives somewhere."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, u: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return u / (1 + u^2), shifted by the condition."""
        y = self.factor * u / (1.0 + u * u)
        if cond is None:
            return y
        shift = cond.to(u.dtype) * 0.125
        return y + (shift[:, None, None, None] if shift.ndim == 1 else shift)


class Mixing(nn.Module):
    """A network with the libraries' convolution and product, and the workspaces that they keep a stream."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.linear = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(16, 16)

    def forward(self, u: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return a mixture of pixels and channels."""
        return self.linear(torch.tanh(self.conv(u)))


class Refuses(nn.Module):
    """A network that reads a value on the host, which no capture allows."""

    def forward(self, u: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return u or -u."""
        return u if float(t[0]) > -1e9 else -u


def model(device: torch.device, net: nn.Module | None = None, dtype: torch.dtype | None = None, **more: Any) -> Any:
    """Return the score model of a network, on a device."""
    net = (Elementwise() if net is None else net).to(device)
    net = net if dtype is None else net.to(dtype)
    return fs.ScoreModel(net, SHAPE, fs.EDM(), fs.Parametrization("edm", "log_sigma/4"), **more)


@dataclass(frozen=True)
class Case:
    """Settings of a sampler, and what a run of it is given."""

    solver: Any = field(default_factory=fs.DPMpp2M)
    model: Callable[[torch.device], fs.ScoreModel] = model
    settings: Callable[[torch.device], dict[str, Any]] = lambda device: {}
    fields: Callable[[], dict[str, Any]] = dict


def cases() -> dict[str, Case]:
    """Return what is captured in every mode."""
    classes = partial(model, classes=4, null=4)
    ramp = torch.linspace(-1.0, 1.0, 3 * 16 * 16).reshape(SHAPE)
    pc = fs.PredictorCorrector(fs.ReverseDiffusion(), fs.Langevin())

    def labels() -> dict[str, Any]:
        return {"labels": 1}

    def second(device: torch.device) -> dict[str, Any]:
        return {"guidance": fs.Guidance(2.0, model=model(device, Elementwise(0.5)))}

    return {
        "2M": Case(),
        "Heun": Case(fs.Heun()),
        "PC": Case(pc),
        "CFG": Case(model=classes, settings=lambda d: {"guidance": fs.Guidance(2.0)}, fields=labels),
        "interval CFG": Case(
            model=classes, settings=lambda d: {"guidance": fs.Guidance(2.0, interval=(0.2, 5.0))}, fields=labels
        ),
        "known": Case(fields=lambda: {"known": fs.Known(ramp, ramp > 0.2)}),
        "cond": Case(model=partial(model, cond_shape=SHAPE), fields=lambda: {"cond": ramp}),
        "bf16 u": Case(model=partial(model, dtype=torch.bfloat16)),
        "second model": Case(settings=second),
    }


def make(card: Card, case: Case, mode: str, device: torch.device | None = None) -> Any:
    """Return a sampler of a case; on another device than the card's, the plain one."""
    at, batch = device or card.device, 4
    settings = {"solver": case.solver, "grid": fs.karras(STEPS), "batch": batch, **case.settings(at)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # per-sample norms: the same on both sides
        if device is not None:
            return fs.Sampler(case.model(at), **settings)
        return card.sampler(case.model(at), mode, **settings)


def mixing() -> Case:
    """Return the case of a network that libraries compute."""
    return Case(model=lambda device: model(device, Mixing()))
