"""The caller's objects are the caller's: whatever happens between runs, a run is a fresh sampler's and changes nothing.

Random sequences of what callers do to a network, its surroundings and the sampler itself (hypothesis, stateful).
"""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from torch import nn

import fastscore as fs
from fastscore.network import prepare
from fastscore.network.prepare import Numerics, Prepared

D, IDS = 3, range(5)


class Net(nn.Module):
    """Dropout and batch norm, whose training mode would show, a buffer that is no parameter, and a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.drop = nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.head, self.scale = nn.Linear(8, D), 1.0
        self.register_buffer("shift", torch.zeros(D))

    def forward(self, u, c_noise, cond=None):
        h = self.drop(torch.tanh(self.norm(self.body(u))))
        # Tensors without a device or a dtype are where defaults of the caller would show.
        return self.head(h) * self.scale + self.shift + torch.full((1,), 0.1).to(u)


class Holder:
    """Neither callable nor a dataclass: nobody looks into it."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net


class Behind:
    """A function of a network that it does not show."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder

    def __call__(self, u, c_noise, cond):
        return self.holder.net(u, c_noise)


class Joint(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, u, c_noise):
        return {name: self.net(v, None) for name, v in u.items()}


def model_of(kind: str, net: Net) -> fs.ScoreModel | fs.JointModel:
    if kind == "joint":
        return fs.JointModel(Joint(net), {"a": fs.Part((D,), fs.VP()), "b": fs.Part((D,), fs.VE())})
    if kind == "behind":
        return fs.ScoreModel(Behind(Holder(net)), (D,), fs.VP(), modules=(net,))
    return fs.ScoreModel(net, (D,), fs.VP())


def net_of(model: fs.ScoreModel | fs.JointModel) -> Net:
    return model.modules[0] if model.modules else model.net.net if isinstance(model.net, Joint) else model.net


def facade(kind: str, model) -> object:
    if kind == "flow":
        return fs.ProbabilityFlow(model, solver="heun", grid=fs.uniform(2, clean=False), batch=4)
    if kind == "joint":
        return fs.JointSampler(model, solver="euler", steps=2, batch=4)
    if kind == "adaptive":
        return fs.Sampler(model, solver=fs.BogackiShampine(0.5, 0.5), batch=4)
    return fs.Sampler(model, steps=2, batch=4, network="fp32" if kind == "packaged" else "own")


def drawn(kind: str, sampler) -> torch.Tensor:
    if kind == "flow":
        return sampler.log_likelihood(
            torch.linspace(-1.0, 1.0, 5 * D, dtype=torch.float32, device="cpu").view(5, D)
        ).nats
    x = sampler.run(IDS, seed=4)
    with torch.inference_mode(False):
        return torch.cat(list(x.values()), 1) if kind == "joint" else x


def outcome(kind: str, sampler) -> torch.Tensor | str:
    """The samples, or what was refused."""
    try:
        return drawn(kind, sampler)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def unpickled(kind: str, data: bytes) -> bytes:
    try:
        return pickle.dumps(outcome(kind, pickle.loads(data)))
    except ValueError as error:
        return pickle.dumps(f"ValueError: {error}")


def look(net: Net) -> tuple[list, list[torch.Tensor]]:
    """All of a network that its owner could see."""
    named = [*net.named_parameters(), *net.named_buffers()]
    facts = [(n, v.dtype, v.device, v.requires_grad, v.is_inference(), id(v), v.data_ptr()) for n, v in named]
    values = [v.detach().clone() for _, v in named if v.device.type != "meta"]
    values += [p.grad.clone() for p in net.parameters() if p.grad is not None]
    modes = [(name, m.training, len(m._forward_hooks)) for name, m in net.named_modules()]
    return [facts, modes, net.scale], values


def frozen(trial, kind, say):
    """Stand in for the compiler: like a package it has a copy of everything."""
    return Prepared(copy.deepcopy(trial.net).eval(), trial.example, Numerics(kind, "package"))


KINDS = ("module", "behind", "adaptive", "flow", "joint", "packaged")
AMBIENT = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "device": lambda: torch.device("meta"),
}


class Caller(RuleBasedStateMachine):
    @initialize(kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
    def begin(self, kind, seed):
        torch.manual_seed(seed)
        self.kind, net = kind, Net()
        net.norm.running_mean.uniform_(-1.0, 1.0)
        self.sampler = facade(kind, model_of(kind, net))
        self.ambient: set[str] = set()
        self.thread = self.fork = False

    @property
    def net(self) -> Net:
        return net_of(self.sampler.model)

    @rule(mode=st.booleans(), part=st.sampled_from(["", "norm", "drop"]))
    def mode(self, mode, part):
        self.net.get_submodule(part).train(mode)

    @rule(names=st.sets(st.sampled_from([*AMBIENT, "dtype"])))
    def surround(self, names):
        self.ambient = names

    @rule(
        how=st.sampled_from(
            ["step", "data", "set", "load", "assign", "parameter", "buffer", "statistics", "scale", "layer", "forward"]
        )
    )
    def update(self, how):
        net = self.net
        if how == "step":
            net.zero_grad()
            sum(p.square().sum() for p in net.parameters()).backward()
            with torch.no_grad():  # as optimizers do, which take seconds to import
                for p in net.parameters():
                    p.add_(p.grad, alpha=-0.1)
        elif how == "data":
            net.head.weight.data.add_(0.125)  # bumps no version counter
        elif how == "set":
            net.body.bias.data = net.body.bias.data + 0.25
        elif how in ("load", "assign"):
            state = {k: v * 0.75 if v.is_floating_point() else v for k, v in net.state_dict().items()}
            net.load_state_dict(state, assign=how == "assign")
        elif how == "parameter":
            net.head.bias = nn.Parameter(net.head.bias.detach() - 0.5)
        elif how == "buffer":
            net.shift += 0.25
        elif how == "statistics":
            net.norm.running_var.mul_(1.5)
        elif how == "scale":
            net.scale *= 0.5
        elif how == "layer":
            net.body = copy.deepcopy(net.body).requires_grad_(True)
            net.body.weight.data.neg_()
        else:  # a training step's forward pass moves batch statistics
            modes = {m: m.training for m in net.modules()}
            net.train()(torch.ones(4, D, dtype=net.head.weight.dtype) * net.head.weight.detach().sum(), None)
            for m, training in modes.items():
                m.training = training

    @rule(dtype=st.sampled_from([torch.float64, torch.bfloat16, torch.float32]))
    def cast(self, dtype):
        self.net.to(dtype)

    @rule(how=st.sampled_from(["pickle", "deepcopy", "release", "new request"]))
    def travel(self, how):
        if how in ("pickle", "deepcopy"):
            try:
                self.sampler = (
                    pickle.loads(pickle.dumps(self.sampler)) if how == "pickle" else copy.deepcopy(self.sampler)
                )
            except ValueError:  # of a network that was cast so that it cannot be sampled: a fresh one says the same
                assert isinstance(self._fresh(self.sampler.model), str)
        elif how == "release":
            self.sampler.release()
        elif self.kind in ("module", "behind", "adaptive"):
            try:
                stream = self.sampler.stream(IDS)
                next(stream)
                stream.close()  # after one of two micro-batches
            except (ValueError, RuntimeError) as error:
                assert self._fresh(self.sampler.model) == f"{type(error).__name__}: {error}"

    @precondition(lambda self: not self.fork)
    @rule()
    def in_a_thread(self):
        self.thread = True

    @precondition(lambda self: not self.thread and self.kind in ("module", "flow"))
    @rule()
    def in_a_fork(self):
        self.fork = True

    @rule()
    def run(self):
        kind, net = self.kind, self.net
        before = look(net)
        clean = copy.deepcopy(self.sampler.model)
        net_of(clean).eval()
        expected = self._fresh(clean)
        if self.fork:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                found = pickle.loads(pool.apply(unpickled, (kind, pickle.dumps(self.sampler))))
        elif self.thread:
            with ThreadPoolExecutor(1) as pool:
                found = pool.submit(self._within, lambda: outcome(kind, self.sampler)).result()
        else:
            found = self._within(lambda: outcome(kind, self.sampler))
        self.thread = self.fork = False
        if isinstance(expected, str) or isinstance(found, str):
            assert expected == found
        else:
            assert found.equal(expected)
            assert not found.requires_grad
            assert not found.is_inference()
        after = look(net)
        assert after[0] == before[0]
        assert all(a.equal(b) for a, b in zip(after[1], before[1], strict=True))

    def _fresh(self, model):
        try:
            sampler = facade(self.kind, model)
        except ValueError as error:
            return f"ValueError: {error}"
        return outcome(self.kind, sampler)

    def _within(self, call):
        """Call it in the surroundings that were chosen, and see that they are left as they were."""
        with ExitStack() as exits:
            if "dtype" in self.ambient:
                torch.set_default_dtype(torch.float64)
                exits.callback(torch.set_default_dtype, torch.float32)
            for name in sorted(self.ambient - {"dtype"}):
                exits.enter_context(AMBIENT[name]())
            before = self._seen()
            result = call()
            assert self._seen() == before
        return result

    @staticmethod
    def _seen():
        return (
            torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(), torch.is_grad_enabled(),
            torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(),
        )  # fmt: skip


def sequences(count: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_packaged", frozen)
        run_state_machine_as_test(
            Caller,
            settings=settings(
                max_examples=count,
                stateful_step_count=16,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            ),
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the network")
def test_sequences_of_what_callers_do():
    sequences(20)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:the network")
def test_many_sequences_of_what_callers_do():
    sequences(200)
