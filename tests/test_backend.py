"""As a backend: what a service, a training loop and pools of processes do with samplers, and what it leaves behind."""

from __future__ import annotations

import copy
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import pairwise, zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from backend import Drawn, drawn
from torch import nn
from torch.utils.data import DataLoader

import fastscore as fs
from fastscore import chains
from fastscore.guidance.guides import ClassifierGuidance
from fastscore.model import analytic
from fastscore.network import prepare
from fastscore.network.jit import has_compiler
from fastscore.network.prepare import Numerics, Prepared

D, IDS = 3, range(10)
SOLVERS = {"plan": "dpmpp-2m", "adaptive": fs.BogackiShampine(0.3, 0.3)}
EITHER = ["plan", pytest.param("adaptive", marks=pytest.mark.slow)]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, h):
        return torch.tanh(self.linear(h))


class Net(nn.Module):
    """Two equal blocks; a tensor without a dtype is where another thread's default would show."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.blocks = nn.Sequential(Block(), Block())

    def forward(self, u, c_noise, cond=None):
        return self.blocks(u) * torch.full((1,), 1.1).to(u) + 0.01 * c_noise.to(u)[:, None]


class Lost(Exception):
    """The client is gone."""


def model(net: nn.Module | None = None) -> fs.ScoreModel:
    return fs.ScoreModel(net or Net(), (D,), fs.VP())


def double() -> fs.ScoreModel:
    return model(Net().double())


def sampler(of: fs.ScoreModel, solver: str = "plan", **settings) -> fs.Sampler:
    steps = {"steps": 4} if solver == "plan" else {}
    return fs.Sampler(of, solver=SOLVERS[solver], batch=4, **steps, **settings)


# A service


@pytest.mark.parametrize("solver", EITHER)
def test_clients_of_threads_that_share_a_network_get_what_they_get_alone(solver):
    shared, own = model(), threading.local()
    expected = [sampler(shared, solver).run(IDS, seed) for seed in range(6)]

    def serve(seed):
        if not hasattr(own, "sampler"):
            own.sampler = sampler(shared, solver)
        return joined(own.sampler.stream(IDS, seed))

    with ThreadPoolExecutor(3) as pool:
        assert all(found.equal(x) for found, x in zip(pool.map(serve, range(6)), expected, strict=True))


def joined(stream) -> torch.Tensor:
    """What a stream gives, in the order of the ids."""
    ids, x = (torch.cat(parts) for parts in zip(*stream, strict=True))
    assert ids.sort().values.tolist() == list(IDS)
    return x[ids.argsort()]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_client_that_goes_in_the_middle_leaves_its_sampler_free(solver):
    drawer = sampler(model(), solver)
    expected = drawer.run(IDS)
    stream = drawer.stream(IDS)
    ids, x = next(stream)
    stream.close()
    assert x.equal(expected[ids])
    next(drawer.stream(IDS, 1))  # or is forgotten
    assert drawer.run(IDS).equal(expected)

    def gone(done):
        raise Lost

    with pytest.raises(Lost):  # within a micro-batch
        drawer.run(IDS, progress=gone)
    assert drawer.run(IDS).equal(expected)


@pytest.mark.parametrize("solver", EITHER)
def test_an_error_of_one_client_is_its_own(solver):
    shared = model(Net().train())
    expected, meet = sampler(shared, solver).run(IDS), threading.Barrier(3, timeout=30)

    def serve(broken):
        drawer = sampler(shared, solver)

        def told(done):
            if drawer.first:
                drawer.first = False
                meet.wait()  # all are in the middle of a micro-batch
                if broken:
                    raise Lost

        drawer.first = True
        try:
            return drawer.run(IDS, progress=told)
        except Lost:
            return drawer.run(IDS)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(serve, (False, True, False)))
    assert all(x.equal(expected) for x in found)
    assert all(m.training for m in shared.net.modules())


def test_samplers_of_different_settings_do_not_meet():
    """Micro-batch by micro-batch in turn, in one thread; and each is what it is alone."""
    shared = model()
    samplers = [
        sampler(shared), sampler(shared, "adaptive"), sampler(double(), dtype=torch.float64), sampler(shared, clip=0.5),
    ]  # fmt: skip
    expected = [s.run(IDS, 2) for s in samplers]
    parts: list[list] = [[] for _ in samplers]
    for turn in zip_longest(*(s.stream(IDS, 2) for s in samplers)):
        for done, part in zip(parts, turn, strict=True):
            done += [] if part is None else [part]
    for done, x in zip(parts, expected, strict=True):
        assert joined(done).equal(x)


def test_threads_of_different_dtypes_take_turns_and_leave_the_callers():
    """The default dtype is one for the process: one that begins and ends within another's run must not move it."""
    single, wide = model(), double()
    expected, exact = sampler(single).run(IDS), sampler(wide, dtype=torch.float64).run(IDS)
    inside, began, looked = (threading.Event() for _ in range(3))
    seen: list[torch.dtype] = []

    def slow(done):
        if not inside.is_set():
            inside.set()
            began.wait(0.2)  # in vain
        seen.append(torch.get_default_dtype())
        looked.set()

    def other():
        inside.wait(30)
        return sampler(single).run(IDS, progress=lambda done: began.set() or looked.wait(30))

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other)
        assert sampler(wide, dtype=torch.float64).run(IDS, progress=slow).equal(exact)
        assert waiting.result().equal(expected)
    assert set(seen) == {torch.float64}
    assert torch.get_default_dtype() == torch.float32


def test_a_run_within_a_callback_waits_for_nobody():
    shared, found = model(), []
    inner, expected = sampler(shared), sampler(shared).run(IDS)
    outer = sampler(double(), dtype=torch.float64)
    alone = outer.run(IDS)
    assert outer.run(IDS, callback=lambda step: found.append(inner.run(IDS))).equal(alone)
    assert all(x.equal(expected) for x in found) and len(found) == 15
    assert torch.get_default_dtype() == torch.float32


# A training loop


class Training:
    """A network that learns, and the average of its weights, updated in place."""

    def __init__(self) -> None:
        self.net, self.average = Net(), Net()
        self.rng = torch.Generator().manual_seed(0)

    def step(self) -> None:
        self.net.train()
        x = torch.empty(8, D).normal_(generator=self.rng)
        loss = (self.net(x, torch.ones(8)) - 0.5 * x).square().mean()
        self.net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p, q in zip(self.net.parameters(), self.average.parameters(), strict=True):
                p.add_(p.grad, alpha=-0.5)
                q.lerp_(p, 0.2)

    def evaluations(self, drawer: fs.Sampler, count: int = 4) -> list[torch.Tensor]:
        found = []
        for _ in range(count):
            for _ in range(3):
                self.step()
            before = [p.grad.clone() for p in self.net.parameters()], torch.get_rng_state()
            found.append(drawer.run(IDS))
            assert self.net.training and torch.get_rng_state().equal(before[1])
            assert all(p.grad.equal(g) for p, g in zip(self.net.parameters(), before[0], strict=True))
            assert found[-1].equal(sampler(model(self.average)).run(IDS)) or drawer.execution.network != "own"
        assert not any(a.equal(b) for a, b in pairwise(found))
        return found


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count what is compiled ahead of time; a copy stands for it."""
    made: list[str] = []

    def packaged(trial, kind, say):
        made.append(kind)
        return Prepared(copy.deepcopy(trial.net).eval(), trial.example, Numerics(kind, "package"))

    monkeypatch.setattr(prepare, "_packaged", packaged)
    return made


def test_averaged_weights_are_sampled_as_they_are_and_nothing_is_compiled(monkeypatch):
    made, training = counted(monkeypatch), Training()
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    drawer = sampler(model(training.average))
    training.evaluations(drawer)
    engine = drawer.engine
    training.evaluations(drawer)
    assert drawer.engine is engine  # nothing was made anew
    assert not made


@pytest.mark.filterwarnings("ignore:the network has changed")
def test_a_package_holds_weights_and_is_compiled_for_each_evaluation(monkeypatch):
    made, training = counted(monkeypatch), Training()
    training.evaluations(sampler(model(training.average), network="fp32"))
    assert made == ["fp32"] * 4


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="fastscore compiles only where there is g++ or clang++")
@pytest.mark.parametrize("network", ["compile", "regional"])
def test_torch_compile_compiles_once_for_all_evaluations(monkeypatch, network):
    from torch._dynamo.testing import CompileCounter

    counter, training = CompileCounter(), Training()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    drawer = sampler(model(training.average), network=network)
    found = training.evaluations(drawer)
    count = counter.frame_count
    assert count >= 1
    found += training.evaluations(drawer)
    assert counter.frame_count == count
    again = Training()
    expected = again.evaluations(sampler(model(again.average))) + again.evaluations(sampler(model(again.average)))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, expected, strict=True))


# Processes


@pytest.mark.parametrize("how", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_pool_of_processes_draws_what_one_does(how):
    drawer = sampler(analytic.score_model(analytic.gaussian(0.3, 0.4, (D,))))
    expected = drawer.run(IDS, 3)
    with ProcessPoolExecutor(2, multiprocessing.get_context(how)) as pool:
        parts = list(pool.map(partial(drawn, drawer), (IDS[:3], IDS[3:4], IDS[4:])))
    assert torch.from_numpy(np.concatenate(parts)).equal(expected)


@pytest.mark.parametrize("how", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_loader_draw_what_one_process_does(how):
    drawer = sampler(analytic.score_model(analytic.gaussian(0.3, 0.4, (D,))))
    expected = drawer.run(IDS, 3)
    loader = DataLoader(Drawn(drawer, len(IDS)), batch_size=3, num_workers=2, multiprocessing_context=how)
    assert joined(loader).equal(expected)


def test_a_process_that_is_forked_in_the_middle_of_others_runs_is_free_of_them():
    """Threads are not forked: what they held is nobody's there, their networks' modes and the default dtype too."""
    wide, shared, inside, go = model(Net().double().train()), model(), threading.Event(), threading.Event()
    expected = sampler(shared).run(IDS)

    def slow(done):
        inside.set()
        go.wait(30)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: sampler(wide, dtype=torch.float64).run(IDS, progress=slow))
        inside.wait(30)
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            signal.alarm(30)
            right = torch.get_default_dtype() == torch.float32 and all(m.training for m in wide.net.modules())
            os.write(write, b"free" if right and sampler(shared).run(IDS).equal(expected) else b"held")
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as told:
            said = told.read()
        os.waitpid(child, 0)
        go.set()
        assert running.result().dtype == torch.float64
        assert said == b"free"
    assert wide.net.training


# Nothing global


def surroundings() -> dict:
    """All that a process has once, or a thread, and that a library could change."""
    import logging

    return {
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "numpy's generator": str(np.random.get_state()),
        "random": str(random.getstate()),
        "default dtype and device": (torch.get_default_dtype(), torch.get_default_device()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "determinism": (
            torch.are_deterministic_algorithms_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "precision": (
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.benchmark,
        ),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "signals": {k: signal.getsignal(k) for k in signal.valid_signals()},
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.gettrace(), sys.getprofile()),
        "numpy": (np.geterr(), np.get_printoptions()),
        "logging": (logging.root.level, list(logging.root.handlers)),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "recursion": sys.getrecursionlimit(),
    }


def facades() -> dict:
    one, parts = model(), {"a": fs.Part((D,), fs.VP()), "b": fs.Part((D,), fs.VE())}
    joint = fs.JointModel(lambda u, c_noise: {k: 0.5 * v for k, v in u.items()}, parts)
    guide, x = ClassifierGuidance(lambda x, alpha, sigma, y: -x.square().sum(1)), torch.ones(2, D)
    flow = fs.ProbabilityFlow(one, solver="heun", grid=fs.uniform(3), batch=2)
    return {
        "plan": lambda: sampler(one).run(IDS),
        "adaptive": lambda: sampler(double(), "adaptive", dtype=torch.float64).run(IDS),
        "guided": lambda: sampler(one, guide=guide).run(IDS),
        "joint": lambda: fs.JointSampler(joint, grid=fs.uniform(3), batch=4).run(IDS),
        "likelihood": lambda: flow.log_likelihood(x),
        "chains": lambda: chains.run(lambda x: -x.square().sum(1), torch.zeros(1, D), 0.01, 2, range(3), batch=3),
    }


def changed(before: dict) -> dict:
    after = surroundings()
    return {k: (before[k], after[k]) for k in before if before[k] != after[k]}


@pytest.mark.parametrize("what", ["plan", "adaptive", "guided", "joint", "likelihood", "chains"])
def test_a_run_leaves_everything_as_it_was_and_depends_on_none_of_it(what):
    run, dtype = facades()[what], torch.get_default_dtype()
    expected = run()
    torch.manual_seed(5)
    random.seed(5)
    before = surroundings()
    found = run()
    assert not changed(before)
    assert dtype == torch.get_default_dtype()
    pairs = zip(tensors(found), tensors(expected), strict=True)
    assert all(a.equal(b) for a, b in pairs)


def tensors(result) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    values = (result if isinstance(result, dict) else vars(result)).values()
    return [v for v in values if isinstance(v, torch.Tensor)]


IMPORTED = """
import importlib, pkgutil, sys
import torch, numpy, scipy, sympy  # what these change themselves is theirs
sys.path[:0] = {path!r}
import test_backend as t
before = t.surroundings()
import fastscore
for name in dir(fastscore):
    getattr(fastscore, name, None)
first = t.changed(before)
for run in t.facades().values():
    run()
print("changed", first, t.changed(before))
"""


@pytest.mark.slow
def test_an_import_and_a_first_run_leave_everything_as_it_was():
    here = Path(__file__).parent
    code = IMPORTED.format(path=[str(here), str(here / "oracles")])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "changed {} {}\n", done.stdout + done.stderr


def test_nothing_but_the_capture_chooses_a_stream():
    """Work is on the stream that the caller has made current: nobody sets one, or waits for the whole device."""
    package = Path(fs.__file__).parent
    choosing = ("cuda.stream(", "set_stream", "cuda.synchronize", "set_device", "default_stream")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(f"torch.{word}" in path.read_text() or f".{word}" in path.read_text() for word in choosing)
    }
    assert found == {"engine/cuda_graphs.py", "testing.py"}  # which goes back to it; which forbids waiting
