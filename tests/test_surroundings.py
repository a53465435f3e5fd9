"""The surroundings of a run: modes of networks wherever they hide, and what the caller's thread has set."""

from __future__ import annotations

import functools
import gc
import pickle
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn

import fastscore as fs
from fastscore.guidance.guides import Chain, ClassifierGuidance, EnergyGuidance
from fastscore.network.surroundings import behind, evaluating, undisturbed

D = 4


class Seen(nn.Module):
    """Says in which mode it ran, and under which settings."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.modes, self.settings = nn.Linear(D, D), nn.BatchNorm1d(D), [], []

    def forward(self, u, c_noise=None, cond=None):
        self.modes.append((self.training, self.norm.training))
        self.settings.append((
            torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
            torch.get_default_device().type, torch.get_num_threads(),
        ))  # fmt: skip
        return self.norm(self.body(u))

    def run(self, u, t, cond):
        return self(u)


class Linear(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.body = nn.Linear(d, d)

    def forward(self, u, c_noise, cond):
        return self.body(u)


GLOBAL = Seen()


def through_a_global(u, t, cond):
    return GLOBAL(u)


def inner(net, u):
    return net(u)


def ways(net: nn.Module) -> dict:
    def closure(u, t, cond):
        return net(u)

    @functools.wraps(closure)
    def decorated(*args):
        return closure(*args)

    class Callable:
        def __init__(self) -> None:
            self.nets = [net]

        def __call__(self, u, t, cond):
            return self.nets[0](u)

    table = {"net": net}
    model = fs.ScoreModel(net, (D,), fs.VP())
    return {
        "itself": net,
        "lambda": lambda u, t, cond: net(u),
        "no_grad": torch.no_grad()(closure),
        "decorated": decorated,
        "method": net.run,
        "partial": functools.partial(lambda net, u, t, cond: net(u), net),
        "function of a function": lambda u, t, cond: closure(u, t, cond),
        "dict": lambda u, t, cond: table["net"](u),
        "object": Callable(),
        "another model": lambda u, t, cond: model.net(u),
        "default": lambda u, t, cond, net=net: net(u),
    }


@pytest.mark.parametrize("way", [*ways(Seen()), "global", "named"])
def test_a_module_behind_a_function_runs_in_eval_mode(way):
    net = GLOBAL if way == "global" else Seen()
    net.train().norm.eval()
    more = {}
    if way == "named":
        nets = iter(lambda: net, None)  # an iterator: nobody looks into it
        function, more = lambda u, t, cond: next(nets)(u), {"modules": net}
    else:
        function = through_a_global if way == "global" else ways(net)[way]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.modes.clear()
    fs.Sampler(fs.ScoreModel(function, (D,), fs.VP(), **more), steps=2, batch=4).run(range(4))
    assert net.modes == [(False, False)] * 2
    assert (net.training, net.norm.training) == (True, False)
    assert all(v.equal(net.state_dict()[k]) for k, v in before.items())  # batch statistics among them


def test_guides_and_second_models_have_modules_too():
    net, classifier, worse = Seen().train(), Seen().train(), Seen().train()
    guide = Chain((
        ClassifierGuidance(lambda x, alpha, sigma, y: classifier(x).sum(1)),
        EnergyGuidance(lambda D, y: 0.1 * classifier(D).square().sum(1)),
    ))  # fmt: skip
    second = fs.ScoreModel(lambda u, t, cond: worse(u), (D,), fs.VP())
    model = fs.ScoreModel(net, (D,), fs.VP())
    fs.Sampler(model, steps=2, batch=4, guide=guide, guidance=fs.Guidance(2.0, model=second)).run(range(4))
    for m in (net, classifier, worse):
        assert set(m.modes) == {(False, False)}
        assert m.training
        assert m.norm.training
        assert all(p.grad is None for p in m.parameters())


def test_mcmc_has_modules_too():
    net = Seen().train()
    fs_chains = __import__("fastscore.chains", fromlist=["run"])
    fs_chains.run(lambda x: -net(x).square().sum(1), torch.zeros(1, D), 0.01, 2, range(3), batch=3)
    assert set(net.modes) == {(False, False)}
    assert net.training


def test_what_hides_from_sight_is_not_found():
    holder = type("Holder", (), {})()
    holder.net = Seen()
    assert behind(lambda u: holder.net(u)) == []
    assert behind(None, 3, "text", torch.zeros(2), len, [1] * 1000, inner) == []
    assert set(behind(holder.net)) == set(holder.net.modules())


def test_runs_of_two_threads_share_a_network_until_the_last_ends():
    net, inside, go = nn.Dropout(), threading.Event(), threading.Event()

    def other():
        with evaluating(net):
            inside.set()
            go.wait(10)

    thread = threading.Thread(target=other)
    with evaluating(net):
        thread.start()
        inside.wait(10)
    assert not net.training  # the other one still runs
    go.set()
    thread.join()
    assert net.training


AMBIENT = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
    "device": lambda: torch.device("meta"),
    "threads": lambda: _Threads(3),
    "dtype": lambda: _Dtype(),
}


class _Threads:
    def __init__(self, count):
        self.count = count

    def __enter__(self):
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count)

    def __exit__(self, *error):
        torch.set_num_threads(self.before)


class _Dtype:
    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *error):
        torch.set_default_dtype(torch.float32)


def facades(net) -> dict:
    model = fs.ScoreModel(net, (D,), fs.VP())
    grid, guide = fs.uniform(3), ClassifierGuidance(lambda x, alpha, sigma, y: -x.square().sum(1))
    parts = {"a": fs.Part((D,), fs.VP())}
    joint = fs.JointModel(lambda u, c_noise: {"a": net(u["a"])}, parts)
    x = torch.linspace(-1.0, 1.0, 2 * D, device="cpu").view(2, D)
    return {
        "plan": lambda: fs.Sampler(model, grid=grid, batch=2).run(range(3)),
        "langevin": lambda: fs.Sampler(
            model, solver=fs.PredictorCorrector(fs.DDIM(), fs.Langevin()), grid=grid, batch=2
        ).run(range(3)),
        "picard": lambda: fs.Sampler(model, grid=grid, batch=2, parallel=fs.Picard(2)).run(range(3)),
        "adaptive": lambda: fs.Sampler(model, solver=fs.BogackiShampine(3.0, 3.0), batch=2).run(range(3)),
        "guided": lambda: fs.Sampler(model, grid=grid, batch=2, guide=guide).run(range(3)),
        "known": lambda: fs.Sampler(model, grid=grid, batch=2).run(range(3), known=fs.Known(x[0], x[0] < 0)),
        "joint": lambda: fs.JointSampler(joint, grid=grid, batch=2).run(range(3))["a"],
        "likelihood": lambda: (
            fs.ProbabilityFlow(model, solver="heun", grid=fs.uniform(3), batch=2).log_likelihood(x).nats
        ),
        "encode": lambda: fs.ProbabilityFlow(model, solver="heun", grid=fs.uniform(3), batch=2).encode(x),
    }


@pytest.mark.thirds
@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize("how", facades(Seen()))
def test_surroundings_make_no_difference_from_the_first_call_on(how, ambient):
    torch.manual_seed(0)
    net = Seen()
    # What a facade makes first, and what it makes later: a fault of the first call may show in the second.
    draw = facades(net)[how]
    expected, settings = draw(), set(net.settings)
    net.settings.clear()
    with AMBIENT[ambient]():
        found = draw()
    assert found.equal(expected)
    assert not found.is_inference()
    threads = {s[-1] for s in net.settings}
    assert {s[:-1] for s in net.settings} == {s[:-1] for s in settings} == {(False, False, torch.float32, "cpu")}
    assert threads == ({3} if ambient == "threads" else {torch.get_num_threads()})  # those of when it was made
    assert draw().equal(expected)


def test_the_threads_are_those_of_the_first_run():
    net = Seen()
    sampler = fs.Sampler(fs.ScoreModel(net, (D,), fs.VP()), steps=1, batch=2)
    sampler.run(range(2))
    made = net.settings[-1][-1]
    with _Threads(made + 2):
        sampler.run(range(2))
        assert torch.get_num_threads() == made + 2
    assert {s[-1] for s in net.settings} == {made}


def test_a_stream_gives_the_surroundings_back_between_its_samples():
    for solver in ("dpmpp-2m", fs.BogackiShampine(3.0, 3.0)):
        net = Seen().train()
        sampler = fs.Sampler(fs.ScoreModel(net, (D,), fs.VP()), solver=solver, batch=2)
        with torch.autocast("cpu"), torch.enable_grad():
            stream = sampler.stream(range(12))
            next(stream)
            assert torch.is_grad_enabled()
            assert torch.is_autocast_enabled("cpu")
            assert net.training
            del stream  # abandoned
        assert net.training
        assert sampler.run(range(2)).isfinite().all()  # and free again


def test_gradients_are_the_callers_where_they_are_asked_for():
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled), undisturbed(gradients=True):
            assert torch.is_grad_enabled() == enabled
        with torch.set_grad_enabled(enabled):
            with undisturbed():
                assert not torch.is_grad_enabled()
            assert torch.is_grad_enabled() == enabled


# Copies, memory, threads


@pytest.mark.parametrize(
    "kind", ["plan", *(pytest.param(k, marks=pytest.mark.slow) for k in ("adaptive", "known", "joint", "flow"))]
)
def test_release_frees_the_memory_and_a_pickle_takes_none_of_it(kind):
    model = fs.ScoreModel(Linear(D), (D,), fs.VP())
    x = torch.zeros(2, D)
    known = fs.Known(torch.zeros(D), torch.tensor([True, False, True, False]))
    sampler, draw = {
        "plan": (fs.Sampler(model, steps=2, batch=32), lambda s: s.run(range(2))),
        "adaptive": (fs.Sampler(model, solver=fs.BogackiShampine(3.0, 3.0), batch=32), lambda s: s.run(range(2))),
        "known": (fs.Sampler(model, steps=2, batch=32), lambda s: s.run(range(2), known=known)),
        "joint": (
            fs.JointSampler(fs.JointModel(Both(), {"a": fs.Part((D,), fs.VP())}), steps=2, batch=32),
            lambda s: s.run(range(2))["a"],
        ),
        "flow": (fs.ProbabilityFlow(model, solver="heun", grid=fs.uniform(2)), lambda s: s.encode(x)),
    }[kind]
    size = len(pickle.dumps(sampler))
    expected = draw(sampler)
    if kind != "flow":
        assert len(pickle.dumps(sampler)) == size  # nothing that was made on first use travels
        made = {"plan": "engine", "adaptive": "engine", "known": "inpainting", "joint": "loop"}[kind]
        alive = weakref.ref(vars(sampler)[made])
        sampler.release()
        gc.collect()
        assert alive() is None
    sampler.release()
    for again in (sampler, pickle.loads(pickle.dumps(sampler)), __import__("copy").deepcopy(sampler)):
        assert draw(again).equal(expected)


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(D, D)

    def forward(self, u, c_noise):
        return {k: self.net(v) for k, v in u.items()}


def test_a_copy_shares_no_network_with_the_original():
    import copy

    net = Linear(D)
    sampler = fs.Sampler(fs.ScoreModel(net, (D,), fs.VP()), steps=2, batch=4)
    twin, before = copy.deepcopy(sampler), sampler.run(range(4))
    twin.model.net.body.weight.data.zero_()
    assert sampler.run(range(4)).equal(before)
    assert not twin.run(range(4)).equal(before)


def test_two_threads_in_one_sampler_are_told_apart():
    inside, go, errors = threading.Event(), threading.Event(), []

    def net(u, t, cond):
        inside.set()
        go.wait(10)
        return u

    sampler = fs.Sampler(fs.ScoreModel(net, (D,), fs.VP()), steps=1, batch=2)
    thread = threading.Thread(target=lambda: sampler.run(range(2)), name="first")
    thread.start()
    inside.wait(10)
    try:
        sampler.run(range(2))
    except RuntimeError as error:
        errors.append(str(error))
    go.set()
    thread.join()
    assert "in thread 'first'; use another one" in errors[0]
    assert sampler.run(range(2)).isfinite().all()


# A batch that is mostly padding


def test_a_batch_that_is_mostly_padding_is_said_once():
    big = fs.ScoreModel(Linear(512), (512,), fs.VP())
    assert sum(p.numel() for p in big.net.parameters()) > 250_000
    for settings in ({"steps": 1}, {"solver": fs.BogackiShampine(5.0, 5.0)}):
        sampler = fs.Sampler(big, batch=8, **settings)
        with pytest.warns(UserWarning, match=r"batch = 8 for 1 samples: .* 7 lines of padding; batch=1 is faster"):
            sampler.run([0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sampler.run([1])  # once
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fs.Sampler(big, steps=1, batch=8).run(range(17))  # the tail of a long run
        fs.Sampler(big, steps=1, batch=8).run(range(4))  # half is not most
        fs.Sampler(big, steps=1, batch=8).run([])
        small = fs.ScoreModel(Linear(4), (4,), fs.VP())
        fs.Sampler(small, steps=1, batch=64).run([0])  # where it costs nothing
    with pytest.warns(UserWarning, match="63 lines of padding"):
        fs.ProbabilityFlow(big, solver="heun", grid=fs.uniform(1)).encode(torch.zeros(1, 512))
