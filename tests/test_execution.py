"""Execution: how a run is computed; nobody's network is moved, cast or put in another mode."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import fastscore as fs
from fastscore.execution import Execution
from fastscore.network.surroundings import evaluating


class Net(nn.Module):
    """A network whose output shows in which mode it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, u, c_noise, cond=None):
        return self.drop(self.body(u))


def model(net: nn.Module | None = None) -> fs.ScoreModel:
    return fs.ScoreModel(net or Net(), (4,), fs.VP())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 0}, "batch = 0 must be a whole number, at least 1"),
        ({"batch": 2.5}, "batch = 2.5 must be"),
        ({"batch": True}, "batch = True must be"),
        ({"dtype": torch.float16}, "must be torch.float32 or torch.float64"),
        ({"network": "full"}, "must be one of own, auto, fp32, tf32, bf16, compile, regional"),
        ({"network": "auto", "dtype": torch.float64}, "float32 state"),
        ({"backend": "fast"}, "must be one of auto, reference, cpp, triton"),
        ({"graph": "whole"}, "must be auto, off, step or loop"),
        ({"device": "gpu"}, "must be cpu, cuda or cuda:N"),
        ({"device": 1.5}, "device = 1.5 must be a device or a string"),
    ],
)
def test_values_out_of_range_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Execution(**fields)
    with pytest.raises(ValueError, match=message):
        fs.Sampler(model(), **fields)


def test_an_unknown_keyword_is_named():
    with pytest.raises(TypeError, match="unexpected keyword compile; an execution has device, batch, dtype, network"):
        fs.Sampler(model(), compile="full")


def test_keywords_change_an_execution_and_nothing_else():
    base = Execution(batch=3, backend="reference")
    assert Execution.of(base, batch=5) == Execution(batch=5, backend="reference")
    assert Execution.of(base) == base
    sampler = fs.Sampler(model(), execution=base, graph="off")
    assert sampler.execution == Execution("cpu", 3, backend="reference", graph="off")


def test_it_travels_as_plain_values():
    execution = Execution("cpu", 7, torch.float64, backend="reference")
    assert Execution.from_dict(json.loads(json.dumps(execution.to_dict()))) == execution
    assert Execution.from_dict(Execution().to_dict()) == Execution()


def test_the_device_is_the_networks():
    assert Execution().on(Net()).place == torch.device("cpu")
    assert Execution("cpu").on(lambda u: u).place == torch.device("cpu")
    with pytest.raises(ValueError, match="a sampler moves nobody's network"):
        Execution("cuda:0").on(Net())
    with pytest.raises(ValueError, match="device = meta must be cpu or cuda"):
        Execution().on(Net().to("meta"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ValueError, match="device = cuda: torch sees no CUDA device here; use device='cpu'"):
            fs.Sampler(fs.ScoreModel(lambda u, t: u, (4,), fs.VP()), device="cuda")
    half = Net()
    half.body.to("meta")
    half.register_buffer("here", torch.zeros(1))
    with pytest.raises(ValueError, match="the network lies on cpu, meta; move all of it to one device"):
        Execution().on(half)
    with pytest.raises(ValueError, match=r"networks read torch\.bfloat16 and torch\.float32"):
        Execution().network_dtype(Net(), Net().bfloat16())


def everything(net: nn.Module) -> list:
    """What a caller could see of a network: modes, places, dtypes, gradients, values."""
    modes = [(name, m.training) for name, m in net.named_modules()]
    values = [(n, p.device, p.dtype, p.requires_grad, p.grad, p.detach().clone()) for n, p in net.named_parameters()]
    return [modes, [v[:-1] for v in values], torch.cat([v[-1].flatten() for v in values])]


def unchanged(before: list, after: list) -> bool:
    return before[:2] == after[:2] and torch.equal(before[2], after[2])


@pytest.mark.parametrize("how", ["run", "stream", "adaptive", "picard", "flow", "joint", "fails", "abandoned"])
def test_a_network_is_left_as_it_was(how):
    torch.manual_seed(0)
    net = Net()
    net.drop.eval()  # a mixture of modes, which must come back
    net.train(True).drop.train(how != "run")
    before = everything(net)
    settings = {"grid": fs.uniform(3), "batch": 2}
    if how == "run":
        fs.Sampler(model(net), **settings).run(range(3))
    elif how == "stream":
        list(fs.Sampler(model(net), **settings).stream(range(3)))
    elif how == "adaptive":
        fs.Sampler(model(net), solver=fs.BogackiShampine(0.1, 0.1), batch=2).run(range(3))
    elif how == "picard":
        fs.Sampler(model(net), parallel=fs.Picard(2), **settings).run(range(3))
    elif how == "flow":
        fs.ProbabilityFlow(model(net), solver=fs.BogackiShampine(0.1, 0.1)).log_likelihood(torch.zeros(1, 4))
    elif how == "joint":

        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self, u, c_noise):
                return {name: self.net(v, None) for name, v in u.items()}

        parts = {"a": fs.Part((4,), fs.VP()), "b": fs.Part((4,), fs.VE())}
        fs.JointSampler(fs.JointModel(Both(), parts), **settings).run(range(3))
    elif how == "fails":

        def fail(step):
            raise KeyError("a user's own error")

        with pytest.raises(KeyError):
            fs.Sampler(model(net), **settings).run(range(3), callback=fail)
    else:
        stream = fs.Sampler(model(net), **settings).stream(range(6))
        next(stream)
        assert unchanged(before, everything(net))  # between two micro-batches too
        stream.close()
    assert unchanged(before, everything(net))


def test_samples_are_those_of_eval_mode():
    torch.manual_seed(0)
    net = Net()
    settings = {"grid": fs.uniform(3), "batch": 4}
    assert torch.equal(
        fs.Sampler(model(net.train()), **settings).run(range(4)),
        fs.Sampler(model(net.eval()), **settings).run(range(4)),
    )


def test_evaluating_restores_each_module():
    net = Net()
    net.body.eval()
    with evaluating(net, lambda: None):
        assert not any(m.training for m in net.modules())
    assert [m.training for m in net.modules()] == [True, False, True]


def test_no_gradient_is_kept_and_a_run_inside_another_is_refused():
    net = Net()
    sampler = fs.Sampler(model(net), grid=fs.uniform(3), batch=2)
    assert not sampler.run(range(2)).requires_grad
    with pytest.raises(RuntimeError, match="in the middle of a run"):
        sampler.run(range(2), callback=lambda step: sampler.run([0]))
    assert sampler.run(range(2)).isfinite().all()  # and the sampler is free again
