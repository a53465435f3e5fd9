"""What a row asks of a GPU beside the network: counted from the calls of the torch operators."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastscore as fs
from fastscore.model.score import ScoreModel, evaluate
from fastscore.ops.backend import operators

D = 8
KERNELS = {"fastscore::update": 1, "fastscore::langevin": 2, "fastscore::step": 1}  # of kernels/, in an operator


class Launches(TorchDispatchMode):
    """Counts what would be launched; an operator of ours counts the kernels that are behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.names = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        if not func.is_view and name != "aten::_unsafe_view":
            self.count += KERNELS.get(name, 1)
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def rows_of(sampler, **fields):
    """Yield the kind of each kind of row, and what it launches; the network costs nothing."""
    loop = sampler.engine.loop
    loop.labels.moves = True  # as on a GPU
    loop.load(sampler.request(range(4), **fields).padded(4))
    loop.reset()
    outputs = (None, None)
    for kind in loop.kinds:
        with torch.no_grad(), Launches() as seen:
            outputs = loop.advance(kind, outputs)
        yield kind, seen


def network(size):
    F = torch.linspace(-size, size, 4 * D).view(4, D)
    return ScoreModel(lambda u, t, cond: F, (D,), fs.EDM(), fs.Parametrization("edm", "log_sigma/4"))


def sampler(solver, **settings):
    made = fs.Sampler(network(1.0), solver=solver, steps=4, batch=4, **settings)
    made.ops = operators("triton")  # which run the reference on a CPU
    return made


GUIDED = fs.Guidance(2.0, model=network(0.5))
KNOWN = {"known": fs.Known(torch.zeros(D), torch.arange(D) < 3)}
PC = fs.PredictorCorrector(fs.ReverseDiffusion(), fs.Langevin())
CASES = {
    "ddim": (2, fs.DDIM(), {}, {}),
    "dpmpp-2m": (2, fs.DPMpp2M(), {}, {}),
    "heun": (2, fs.Heun(), {}, {}),
    "em": (2, fs.EulerMaruyama(), {}, {}),
    "dpmpp-2m-sde": (2, fs.DPMMultistep(2, eta=1.0), {}, {}),
    "pc": (4, PC, {}, {}),
    "pc, batch": (4, fs.PredictorCorrector(fs.ReverseDiffusion(), fs.Langevin(norm="batch")), {}, {}),
    "known": (2, fs.DDIM(eta=1.0), {}, KNOWN),
    "known, pc": (4, PC, {}, KNOWN),
    "guided": (3, fs.DPMpp2M(), {"guidance": GUIDED}, {}),
    "guided, pc": (5, PC, {"guidance": GUIDED}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_launches_of_a_row(name):
    most, solver, settings, fields = CASES[name]
    made = sampler(solver, **settings)
    if fields:
        vars(made)["engine"] = made.inpainting
    found = {kind: seen for kind, seen in rows_of(made, **fields)}
    assert max(seen.count for seen in found.values()) == most, {k: v.names for k, v in found.items()}
    assert min(seen.count for seen in found.values()) >= 2


def test_launches_of_a_row_whose_evaluations_are_one_call():
    """Its input is written once more, and its outputs are read where they lie."""
    F = torch.linspace(-1.0, 1.0, 8 * D).view(8, D)
    model = ScoreModel(
        lambda u, t, cond: F[: len(u)], (D,), fs.EDM(), fs.Parametrization("edm", "log_sigma/4"), classes=3, null=3
    )
    made = fs.Sampler(model, solver=fs.DPMpp2M(), steps=4, batch=4, guidance=fs.Guidance(2.0), guided="batched")
    made.ops = operators("triton")
    for _, seen in rows_of(made, labels=1):
        assert seen.names in (
            ["fastscore::update", "fastscore::step"],
            ["aten::copy_", "fastscore::update", "fastscore::step"],
        )


@pytest.mark.parametrize(("most", "solver"), [(2, fs.DPMpp2M()), (4, PC)], ids=["dpmpp-2m", "pc"])
def test_outputs_whose_channels_lie_last_are_read_where_they_are(most, solver):
    counts, samples = [], []
    for channels in (3, 9):
        F = torch.linspace(-1.0, 1.0, 64 * channels).view(4, channels, 4, 4)
        for left in (F, F.contiguous(memory_format=torch.channels_last)):
            model = ScoreModel(
                lambda u, t, cond, F=left: F, F.shape[1:], fs.EDM(), fs.Parametrization("edm", "log_sigma/4")
            )
            sampler = fs.Sampler(model, solver=solver, steps=4, batch=4)
            sampler.ops = operators("triton")
            counts.append(max(seen.count for _, seen in rows_of(sampler)))
            samples.append(sampler.run(range(4), seed=3))
        assert torch.equal(*samples[-2:])
    assert counts == [most, most, most, most + 1]  # of more channels than a row reads there is one copy


@pytest.mark.parametrize(
    "net",
    [
        lambda u: torch.ones(3, 1, 1).expand(len(u), 3, 4, 4),
        lambda u: torch.ones(len(u), 3, 4, 4).contiguous(memory_format=torch.channels_last),
        lambda u: torch.ones(len(u), 3, 4, 8)[..., ::2],
    ],
    ids=["expanded", "channels last", "strided"],
)
def test_outputs_lie_as_kernels_read_them(net):
    model = ScoreModel(lambda u, t, cond: net(u), (3, 4, 4), fs.EDM(), fs.Parametrization("x0"))
    for flat in (
        evaluate(model, torch.zeros(2, 3, 4, 4), torch.ones(1), None),
        evaluate(model, torch.zeros(2, 3, 4, 4), torch.ones(1), None, as_left=True).flatten(1),
    ):
        assert flat.is_contiguous()
        assert flat.shape == (2, 48)


@pytest.mark.parametrize("F", [torch.ones(1, 4).expand(2, 4), torch.ones(4, 2).T, torch.ones(2, 8)[:, ::2]])
def test_outputs_of_points_lie_as_kernels_read_them(F):
    model = ScoreModel(lambda u, t, cond: F, (4,), fs.EDM(), fs.Parametrization("x0"))
    for as_left in (False, True):
        assert evaluate(model, torch.zeros(2, 4), torch.ones(1), None, as_left).is_contiguous()
