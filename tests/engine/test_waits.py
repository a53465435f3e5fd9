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


@pytest.mark.parametrize("count", [9, pytest.param(100, marks=pytest.mark.slow)])
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
        for ids, _ in cpu.stream(range(60)):
            got.append(ids.tolist())
    said.append(str(error.value))
    assert 2 < len(got) < 20  # some micro-batches come before it
    with FakeCuda():
        made, seen = sampler(Net(bad).to("cuda:0"), graph="off"), []
        with pytest.raises(fs.NonFiniteError) as error:
            for ids, x in made.stream(range(60)):
                seen.append(ids.tolist())
                assert bool(x.isfinite().all())
        said.append(str(error.value))
        with pytest.raises(fs.NonFiniteError) as error:
            made.run(range(60))
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


def waits(fake, run):
    """Return the waits of a run between its rows and after the last one, those before the first left out."""
    run()  # what is made on first use
    del fake.calls[:]
    run()
    rows = [k for k, call in enumerate(fake.calls) if call.name == "atan"]
    found = [(k, call.name) for k, call in enumerate(fake.calls) if call.kind == "sync"]
    return [name for k, name in found if rows[0] < k < rows[-1]], [name for k, name in found if k > rows[-1]]


class Blank:
    def log(self, data, *, step):
        pass


@pytest.mark.slow
def test_what_is_asked_and_who_looks_on_make_nobody_wait_between_rows():
    """Ids and labels arrive before the first row; a bar follows one micro-batch behind, while the next one is drawn."""
    with FakeCuda() as fake:
        net = Net().to("cuda:1")
        made = sampler(net, graph="off")
        model = fs.ScoreModel(net, (2,), fs.EDM(), made.model.parametrization, classes=3, null=3)
        labelled = fs.Sampler(model, solver=fs.DDIM(), steps=2, batch=2, backend="reference", graph="off")
        ids, seen = list(range(8)), []
        for run in (
            lambda: made.run(ids),
            lambda: made.run(torch.tensor(ids, device="cuda:1")),
            lambda: made.run(range(7), seed=ids[1:]),
            lambda: made.run(ids, callback=seen.append),
            lambda: made.run(made.request(range(16)).at(range(0, 16, 2))),
            lambda: labelled.run(ids, labels="random"),
            lambda: labelled.run(ids, labels=[1] * 8),
        ):
            between, after = waits(fake, run)
            assert (between, len(after)) == ([], 4)
        for run in (lambda: made.run(ids, progress=seen.append), lambda: made.run(ids, log=Blank())):
            between, after = waits(fake, run)
            behind = [name for name in between if name == "Event.synchronize"]
            # The estimates of the first micro-batch are shown as they come.
            assert (len(behind), len(after)) == (2, 2) and len(between) - len(behind) <= 2


@pytest.mark.slow
@pytest.mark.nightly
def test_what_evaluates_as_it_goes_waits_as_often_as_it_must():
    """Picard's sweeps and adaptive steps end when the host sees that they may; parts of a joint model never ask."""
    reads, back = fs.Parametrization("edm", "log_sigma/4"), "copy from cuda:1 to cpu"
    with FakeCuda() as fake:
        net, common = Net().to("cuda:1"), {"batch": 2, "backend": "reference", "graph": "off"}
        parts = {name: fs.Part((d,), fs.EDM(), reads) for name, d in (("a", 2), ("b", 3))}
        both = fs.JointModel(lambda u, t: {k: net(v, t[k]) for k, v in u.items()}, parts)
        joint = fs.JointSampler(both, solver=fs.DDIM(), steps=2, device="cuda:1", **common)
        between, after = waits(fake, lambda: joint.run(range(8)))
        assert (between, len(after)) == ([], 4)
        model = fs.ScoreModel(net, (2,), fs.EDM(), reads)
        parallel = fs.Sampler(model, solver=fs.DDIM(), steps=4, parallel=fs.Picard(3), **common)
        request, seen = parallel.request(range(6)), []
        for progress in (False, seen.append):
            between, after = waits(fake, lambda told=progress: parallel.run(request, progress=told))
            found = [*between, *after]
            assert found.count(back) == int(parallel.engine.sweeps[::2].sum())
            assert found.count("Event.synchronize") == 3 == len(found) - found.count(back)
        adaptive = fs.Sampler(model, solver=fs.Dopri5(1e-1, 1e-1), **common)
        request = adaptive.request(range(2))
        between, after = waits(fake, lambda: adaptive.run(request))
        assert [*between, *after].count(back) <= adaptive.cost.ticks / 4 + 1


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
