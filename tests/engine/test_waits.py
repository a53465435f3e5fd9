"""When the host waits for a GPU, counted on devices that are not there (tests/oracles/fake_cuda.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda
from torch import nn

import fastscore as fs
from fastscore.engine import batches
from fastscore.model.joint import JointModel, Part
from fastscore.ops.quantize import quantize_ref
from fastscore.output.writer import Writer


class Net(nn.Module):
    """Element by element, so that values are those of a CPU; NaN at the last row where the state is above ``bad``."""

    def __init__(self, bad: float = float("inf")):
        super().__init__()
        self.weight, self.bad = nn.Parameter(torch.tensor(0.7)), bad

    def forward(self, u, c_noise, cond=None):
        out = self.weight * torch.atan(u)  # which nothing else uses
        return torch.where((u > self.bad) & (c_noise < -1.0).view(-1, *[1] * (u.ndim - 1)), float("nan"), out)


def sampler(net, shape=(2,), **settings):
    model = fs.ScoreModel(net, shape, fs.EDM(), fs.Parametrization("edm", "log_sigma/4"))
    return fs.Sampler(model, solver=fs.DDIM(), steps=2, batch=2, backend="reference", **settings)


@pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_waits_for_nothing_before_its_last_micro_batch(count):
    expected = sampler(Net()).run(range(2 * count))
    with FakeCuda() as fake:
        made = sampler(Net().to("cuda:1"), graph="off")
        request, out = made.request(range(2 * count)), torch.empty(2 * count, 2, device="cuda:1")
        made.run(range(2))
        del fake.calls[:]
        drawn = made.run(request, out=out)
        found = [k for k, call in enumerate(fake.calls) if call.kind == "sync"]
        rows = [k for k, call in enumerate(fake.calls) if call.name == "atan"]
        assert len(found) == count and len(rows) == 2 * count and found[0] > rows[-1]
        del fake.calls[:]
        # Read one by one, each is waited for when the next one is on its way.
        for k, (_, x) in enumerate(made.stream(request)):
            rows = [call.name for call in fake.calls].count("atan")
            assert (len(fake.syncs), rows) == (k + 1, 2 * min(k + 2, count)) and x.device == out.device
        assert torch.equal(drawn.cpu(), expected)


def test_a_sample_that_is_not_finite_is_named_and_not_handed_out():
    bad = 0.8
    cpu, said = sampler(Net(bad)), []
    got = []
    with pytest.raises(fs.NonFiniteError) as error:
        for ids, _ in cpu.stream(range(16)):
            got.append(ids.tolist())
    said.append(str(error.value))
    assert 2 < len(got) < 8  # some micro-batches come before it
    with FakeCuda():
        made, seen = sampler(Net(bad).to("cuda:0"), graph="off"), []
        with pytest.raises(fs.NonFiniteError) as error:
            for ids, x in made.stream(range(16)):
                seen.append(ids.tolist())
                assert bool(x.isfinite().all())
        said.append(str(error.value))
        with pytest.raises(fs.NonFiniteError) as error:
            made.run(range(16))
        said.append(str(error.value))
        assert made.run(range(2)).isfinite().all()
    assert seen == got and len({*said}) == 1 and "at row 2" in said[0]


def test_a_writer_waits_for_nothing_and_writes_what_has_arrived():
    samples = np.zeros((10, 4, 4, 1), np.uint8)
    expected = quantize_ref(sampler(Net(), (1, 4, 4)).run(range(10)))
    with FakeCuda() as fake:
        made = sampler(Net().to("cuda:1"), (1, 4, 4), graph="off")
        made.run(range(2))
        with Writer(samples, range(10), quantize_ref) as writer:
            for ids, x in made.stream(range(10)):
                before = len(fake.syncs)
                writer.put(ids, x)
                assert "Event.synchronize" in fake.syncs[before:] or len(fake.syncs) == before  # a thread's
                assert not [name for name in fake.syncs[before:] if name.startswith("copy")]
            writer.finish()
        assert fake.current_device() == 0
    assert np.array_equal(samples, expected.numpy())


def test_a_joint_run_waits_at_its_end():
    def joint():
        net = Net()
        parts = {name: Part((2,), fs.EDM()) for name in "ab"}
        return net, JointModel(lambda u, t: {k: net(v, t[k]) for k, v in u.items()}, parts, modules=(net,))

    settings = {"solver": fs.DDIM(), "steps": 2, "batch": 2, "backend": "reference"}
    expected = fs.JointSampler(joint()[1], **settings).run(range(12))
    with FakeCuda() as fake:
        net, model = joint()
        net.to("cuda:0")
        made = fs.JointSampler(model, graph="off", **settings)
        request = made.request(range(12))
        made.run(range(2))
        del fake.calls[:]
        x = made.run(request)
        found = [k for k, call in enumerate(fake.calls) if call.kind == "sync"]
        assert len(found) == 6 and found[0] > max(k for k, call in enumerate(fake.calls) if call.name == "atan")
        assert all(torch.equal(x[k].cpu(), expected[k]) for k in "ab")


def test_weights_are_looked_at_once_a_run_and_conditions_with_each_micro_batch(monkeypatch):
    class Told(Net):
        def forward(self, u, c_noise, cond=None):
            return super().forward(u, c_noise) + cond.to(u.dtype).mean(1, keepdim=True)

    def made(net):
        model = fs.ScoreModel(net, (2,), fs.EDM(), fs.Parametrization("edm", "log_sigma/4"), cond_shape=(None,))
        return fs.Sampler(model, solver=fs.DDIM(), steps=2, batch=2, backend="reference")

    conds = [torch.arange(6.0).view(6, 1), torch.arange(6).view(6, 1) * torch.tensor([1, 2]), torch.ones(6, 3) / 7.0]
    expected = [made(Told()).run(range(6), cond=cond) for cond in conds]
    looked = []
    with FakeCuda():
        sampler = made(Told().to("cuda:0"))
        for cond, x in zip([*conds, conds[0]], [*expected, expected[0]], strict=True):
            assert torch.equal(sampler.run(range(6), cond=cond).cpu(), x)
        assert sampler.engine.mode == "step"
        monkeypatch.setattr(batches, "frozen_in", lambda *_: looked.append(1) or [])
        sampler.engine.frozen = sampler.engine._frozen()
        del looked[:]
        sampler.run(range(6), cond=conds[0])
        assert len(looked) == 1
