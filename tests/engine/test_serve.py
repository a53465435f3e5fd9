"""Serving: samples are those of runs alone, whatever company they have; handles, errors, threads."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import weakref
from concurrent.futures import CancelledError, TimeoutError, as_completed

import pytest
import torch
from torch import Tensor

import fastscore as fs
from fastscore.data.affine import Affine
from fastscore.engine import lane_groups, plan_table, replays
from fastscore.engine.capture import Tape
from fastscore.engine.row_lanes import RowLanes
from fastscore.engine.step_lanes import StepLanes

B, SHAPE = 5, (2, 3)


def net(u: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
    shift = 0.0 if cond is None else 0.1 * cond.to(u.dtype).reshape(-1, 1, 1)
    return u / (1.0 + u * u) + 0.1 * c_noise.reshape(-1, 1, 1) + shift


def model(function=net, **fields) -> fs.ScoreModel:
    return fs.ScoreModel(function, SHAPE, fs.VP(), fs.Parametrization("v"), **fields)


MODEL = model(classes=3, null=3)
SECOND = fs.ScoreModel(
    lambda u, c, cond: 0.5 * net(u, c, cond), SHAPE, fs.EDM(0.002, 500.0), fs.Parametrization("eps"), 3
)
FREE = model(lambda u, c: 0.25 * net(u, c))
FACTS = {
    "ode": {"solver": fs.DDIM(), "steps": 8},
    "sde": {"solver": fs.DDIM(1.0), "steps": 5},
    "multistep": {"steps": 11},
    "two stages": {"solver": "heun", "steps": 7},
    "churn": {"solver": "edm-churn", "steps": 6},
    "history and noise": {"solver": "er-sde", "steps": 6},
    "langevin": {"solver": fs.PredictorCorrector(fs.DDIM(), fs.Langevin()), "steps": 4},
    "langevin, expected": {"solver": fs.PredictorCorrector(fs.DDIM(), fs.Langevin(norm="expected")), "steps": 4},
    "guided": {"solver": fs.DDIM(), "steps": 6, "guidance": fs.Guidance(2.0)},
    "in an interval": {"steps": 9, "guidance": fs.Guidance(3.0, (0.1, 5.0))},
    "cfg++": {"solver": fs.DDIM(), "steps": 6, "guidance": fs.Guidance(0.6, (0.1, 5.0), rule="cfg++")},
    "second alone": {"solver": fs.DDIM(), "steps": 6, "guidance": fs.Guidance(0.0)},
    "second model": {"solver": fs.DDIM(), "steps": 6, "guidance": fs.Guidance(2.0, model=SECOND)},
    "second model without classes": {"solver": fs.DDIM(), "steps": 6, "guidance": fs.Guidance(2.0, model=FREE)},
    "clip": {"solver": fs.DDIM(), "steps": 6, "clip": 0.3},
    "several": {"solver": fs.DDIM(0.3), "steps": 6, "guidance": fs.Guidance((2.0, 1.5))},
    "three in an interval": {"solver": fs.DDIM(), "steps": 5, "guidance": fs.Guidance((2.0, 1.5, -1.0), (0.2, 3.0))},
    "data": {"solver": fs.DDIM(), "steps": 6, "start": "data"},
    "state": {"solver": fs.DDIM(), "steps": 6, "start": "state"},
    "threshold": {"solver": fs.DDIM(), "steps": 6, "guide": fs.DynamicThreshold(0.5, 0.2)},
    "rule": {"steps": 6, "guidance": fs.Guidance(3.0, (0.1, 5.0)), "guide": fs.APG(0.2, 0.1)},
    "rule, cfg++": {
        "solver": fs.DDIM(), "steps": 6, "guide": fs.APG(0.2, 0.1),
        "guidance": fs.Guidance(0.6, (0.1, 2.0), rule="cfg++"),
    },
    "adaptive": {"solver": fs.BogackiShampine(0.1, 0.1)},
    "adaptive, noisy": {"solver": fs.GottaGoFast(1.0, 1.0)},
    "schedule": {"solver": fs.DDIM(), "steps": 6, "schedule": fs.EDM()},
    "schedule, guided": {"steps": 5, "schedule": fs.EDM(), "guidance": fs.Guidance(2.0, (0.1, 5.0))},
}  # fmt: skip


def sampler(name: str = "ode", of: fs.ScoreModel = MODEL, **fields) -> fs.Sampler:
    return fs.Sampler(of, **{"batch": B, **FACTS[name], **fields})


def requests(samplers: dict[str, fs.Sampler], n: int, seed: int) -> list[tuple[fs.Sampler, dict]]:
    """Return n requests, each sampler's first."""
    rng, result, names = random.Random(seed), [], list(samplers)
    values = torch.Generator().manual_seed(seed)

    def state() -> Tensor:
        return torch.rand(SHAPE, generator=values)

    for name in [*names, *(rng.choice(names) for _ in range(n - len(names)))][:n]:
        k = rng.randint(1, 7)

        def labels(k: int = k) -> list[int]:
            return [rng.randint(0, 2) for _ in range(k)]

        asked: dict = {"ids": [rng.randint(0, 1 << 40) for _ in range(k)], "labels": labels()}
        asked["seed"] = rng.choice([3, (1 << 64) - 1, labels()])
        if name in ("data", "state"):
            asked["init"] = state()
        if name in ("several", "three in an interval"):
            asked["others"] = [labels(), 1][: 1 + (name != "several")]
        if name in ("guided", "in an interval") and rng.random() < 0.5:
            asked["negative"] = labels()
        if name not in ("adaptive, noisy", "state", "data") and rng.random() < 0.2:
            mask = torch.zeros(SHAPE, dtype=torch.bool)
            mask[0] = True
            asked["known"] = fs.Known(state(), mask)
        if name != "state" and rng.random() < 0.2:
            asked["prior_ids"] = labels()
        result.append((samplers[name], asked))
    return result


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int64)


def check(engine: fs.Engine, asked: list[tuple[fs.Sampler, dict]]) -> None:
    """Check that what is drawn together is what is drawn alone, to the bit."""
    handles = [engine.submit(one, **fields) for one, fields in asked]
    for handle, (one, fields) in zip(handles, asked, strict=True):
        assert torch.equal(bits(handle.result()), bits(one.run(**fields))), one.settings
        assert handle.ids.tolist() == list(fields["ids"])


@pytest.mark.filterwarnings("ignore:Langevin with per-sample norms", "ignore:this grid")
def test_samples_are_those_of_runs_alone(monkeypatch):
    monkeypatch.setattr(plan_table, "ROWS", 16)  # so that plans come and go
    samplers = {name: sampler(name) for name in FACTS}
    engine = fs.Engine(MODEL, batch=B)
    check(engine, requests(samplers, len(samplers) + 6, seed=1))
    check(engine, [(samplers["sde"], {"ids": [4, 9, 2], "seed": [7, 8, 9], "labels": 0})])  # that enter together
    check(engine, [(samplers["several"], {"ids": [k], "labels": 1, "others": [2]}) for k in range(3)])  # and no others
    for steps in range(3, 9):  # nothing is kept of plans that are done, but what room there is
        check(engine, [(sampler(steps=steps), {"ids": range(2), "labels": 1}) for _ in range(4)])
    rows = [group.lanes for group in engine._dispatch.groups.groups if isinstance(group.lanes, RowLanes)]
    assert max(len(lanes.plans.columns.table) for lanes in rows) < 160


@pytest.mark.filterwarnings("ignore:this grid", "ignore:noise of")
def test_zeros_keep_their_signs():
    """A term that is 0 for one sample, since another one has it, would make +0 of its -0."""
    one = fs.ScoreModel(lambda u, c: torch.zeros_like(u), SHAPE, fs.VP(), fs.Parametrization("eps"))
    still = [sampler(name, one, start="state") for name in ("ode", "multistep")]
    noisy = [sampler(name, one) for name in ("sde", "history and noise")]
    asked: list[tuple[fs.Sampler, dict]] = [(s, {"ids": [3], "init": torch.full(SHAPE, -0.0)}) for s in still]
    asked += [(s, {"ids": [k]}) for k, s in enumerate(noisy)]
    assert all((bits(s.run(**fields)) < 0).all() for s, fields in asked[:1])
    check(fs.Engine(one, batch=B), asked)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Langevin with per-sample norms", "ignore:this grid")
def test_recorded_ticks_give_the_same_bits(monkeypatch):
    made = []

    def recorded(*arguments) -> RowLanes:
        made.append(RowLanes(*arguments[:-1], None if arguments[5] is not None else Tape))
        return made[-1]

    monkeypatch.setattr(lane_groups, "RowLanes", recorded)
    monkeypatch.setattr(replays, "AGAIN", 1)
    monkeypatch.setattr(plan_table, "ROWS", 64)  # which a replay must not outlive
    names = ("ode", "multistep", "two stages", "langevin", "in an interval", "several", "second alone", "data")
    samplers = {name: sampler(name, backend="reference") for name in names}
    check(fs.Engine(MODEL, batch=B, backend="reference"), requests(samplers, 14, seed=2))
    assert len(made[0].replays.calls) > 3


def test_what_cannot_be_recorded_is_done_anew(monkeypatch):
    class Broken:
        def record(self, reset, work):
            work()
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(lane_groups, "RowLanes", lambda *arguments: RowLanes(*arguments[:-1], Broken))
    with pytest.warns(UserWarning, match="no CUDA graph: .*not permitted"):
        check(fs.Engine(MODEL, batch=B), [(sampler(), {"ids": [k], "labels": 1}) for k in range(B)])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Langevin with per-sample norms", "ignore:this grid")
def test_models_of_other_kinds():
    """Units of the data and a base, float64, two times, sets, and conditions by name, whose shapes keep lanes apart."""
    columns = {"transform": Affine((1.0, 0.0, -2.0), (2.0, 1.0, 0.5)), "base": Affine((0.1, 0.0, 0.3), (1.5, 1.2, 1.0))}
    for one in (model(**columns), model(**{**columns, "base": None})):
        check(fs.Engine(one, batch=B, dtype=torch.float64), [
            (sampler(name, one, dtype=torch.float64), {"ids": [k, 9, 7], "seed": k, **asked})
            for name, asked in (("sde", {}), ("data", {"init": torch.ones(SHAPE)}), ("multistep", {}))
            for k in range(2)
        ])  # fmt: skip

    def leads(u, c):
        return 0.5 * u + 0.1 * (c[:, 0] - c[:, 1]).reshape(-1, 1, 1)

    two = fs.ScoreModel(leads, SHAPE, fs.Flow(), fs.Parametrization("flow"), two_times=True)
    short = [sampler("ode", two, steps=n) for n in (1, 3)]
    check(fs.Engine(two, batch=B), [(short[k % 2], {"ids": [k, k + 1]}) for k in range(5)])

    def masked(u, c, cond):
        return net(u, c, cond[:, 0])

    cond = torch.tensor([[1, 0], [1, 1], [0, 1]]).bool()
    sets = model(masked, cond_shape=(2,), null=torch.ones(2).bool(), projection=fs.Padded())
    names = ("ode", "sde", "multistep", "langevin, expected", "langevin", "guided", "threshold", "adaptive")
    asked = [(sampler(name, sets), {"ids": [k, 9, 7], "cond": cond}) for name in names for k in range(2)]
    check(fs.Engine(sets, batch=B), asked)

    def told(u, c, cond):
        return net(u, c, cond["tokens"].sum(1) + cond["labels"])

    named = model(told, classes=3, cond_shape={"tokens": (None,)}, null={"labels": 3})
    one = sampler("guided", named)
    tokens = [torch.arange(float(n * k)).reshape(n, k) for n, k in ((2, 2), (3, 2), (2, 4))]
    engine = fs.Engine(named, batch=B)
    check(engine, [(one, {"ids": range(len(v)), "labels": 1, "cond": {"tokens": v}}) for v in tokens])
    assert len(engine._dispatch.groups.groups) == 2
    away = {"labels": 2, "tokens": torch.ones(3)}
    check(
        engine, [(one, {"ids": [k], "labels": 1, "cond": {"tokens": tokens[0][0]}, "negative": away}) for k in (1, 2)]
    )


def test_guided_samples_take_two_lanes_of_one_call():
    calls = []

    def counted(u, c, cond):
        calls.append(cond.tolist())
        return net(u, c, cond)

    one = model(counted, classes=3, null=3)
    guided, plain = sampler("guided", one), sampler("ode", one, steps=6)
    engine = fs.Engine(one, batch=B)
    handles = [engine.submit(guided, [k, k + 1], labels=[0, 1]) for k in range(2)] + [
        engine.submit(plain, [7], labels=2)
    ]
    list(engine.stream())
    assert len(calls) == engine.ticks == 12 and all(len(cond) == B for cond in calls)
    assert sorted(calls[0]) == [0, 0, 2, 3, 3]  # two guided samples and a plain one
    calls.clear()
    lone = fs.Engine(one, batch=1)  # where there is one lane only: two calls
    x = lone.submit(sampler("guided", one, batch=1), [5], labels=1).result()
    assert [cond[0] for cond in calls] == [1, 3] * 6
    assert torch.equal(x, sampler("guided", one, batch=1).run([5], labels=1)) and handles[0].done()


def test_lanes_are_full_and_the_network_sees_one_size():
    sizes = []

    def counted(u, c):
        sizes.append(len(u))
        return net(u, c)

    one = model(counted)
    steps = [8 + 6 * (37 * k % 8) for k in range(64)]
    samplers = {n: sampler("ode", one, steps=n, batch=16) for n in set(steps)}
    engine = fs.Engine(one, batch=16)
    handles = [engine.submit(samplers[n], [k]) for k, n in enumerate(steps)]
    assert engine.waiting == 64
    assert {len(handle.result()) for handle in engine.stream()} == {1}
    assert engine.waiting == 0 and set(sizes) == {16}
    assert engine.ticks == len(sizes) <= sum(steps) / 16 / 0.97
    assert all(handle.done() for handle in handles)


def test_a_small_request_waits_for_a_lane_and_not_for_a_large_one():
    one, engine = sampler(), fs.Engine(MODEL, batch=B)
    large = engine.submit(one, range(20 * B), labels=0)
    assert len(next(iter(large))[0]) == B and engine.ticks == 8
    small, next_one = (engine.submit(one, [k], labels=1) for k in (7, 8))
    assert small.result().shape == (1, *SHAPE) and next_one.done() and not large.done()
    assert engine.ticks == 2 * 8
    assert len(large.result()) == 20 * B
    assert engine.submit(one, range(1000), labels=0).cancel()
    lengths = {n: sampler(steps=n) for n in (2, 30)}
    queue = [engine.submit(lengths[n], [k], labels=0) for k, n in enumerate([30] * B + [2] * B + [30] * 20 * B)]
    assert queue[B].result() is not None and engine.waiting > 10 * B  # not many overtake it

    pair = fs.Engine(MODEL, batch=2)
    large = pair.submit(sampler(steps=9, batch=2), range(9), labels=0)
    brief = pair.submit(sampler(steps=4, batch=2), [1], labels=0)
    brief.result()  # one lane is free, and the other one large's
    late = pair.submit(sampler(steps=9, batch=2), [2], labels=0)
    assert late.result() is not None and pair.ticks == 4 + 9 and len(large.arrived) == 1


def test_handles():
    one, engine = sampler(), fs.Engine(MODEL, batch=B)
    expected = one.run(range(12), labels=0)
    handle = engine.submit(one, range(12), labels=0)
    with pytest.raises(TimeoutError):
        handle.result(timeout=0)
    seen = {int(k): x for ids, part in handle for k, x in zip(ids, part, strict=True)}
    assert torch.equal(torch.stack([seen[k] for k in range(12)]), expected)
    assert torch.equal(handle.result(), expected) and handle.exception() is None and not handle.cancel()
    assert [len(ids) for ids, _ in handle] and engine.waiting == 0  # and again, of what is there

    queued, under_way, other = (engine.submit(one, range(k, k + 12), labels=0) for k in (0, 100, 200))
    told = []
    queued.add_done_callback(told.append)
    assert queued.cancel() and queued.cancelled() and queued.cancel()
    next(iter(under_way))
    assert under_way.cancel()
    assert [h for h in engine.stream([queued, other, under_way])] and told == [queued]
    assert torch.equal(other.result(), one.run(range(200, 212), labels=0))
    for given_up in (queued, under_way):
        with pytest.raises(CancelledError):
            given_up.result()
        with pytest.raises(CancelledError):
            list(given_up)
    assert engine.submit(one, [], labels=0).result().shape == (0, *SHAPE)
    request = one.request([4, 5], labels=[1, 2])
    assert torch.equal(engine.submit(one, request).result(), one.run(request))
    again = []
    engine.submit(one, [1], labels=0).add_done_callback(lambda h: again.append(engine.submit(one, [2], labels=0)))
    assert len(list(engine.stream())) == 2 and again[0].done()  # what a callback asks for is streamed, too

    kept = weakref.ref(engine.submit(one, [1], labels=0).result())
    gc.collect()
    assert kept() is None  # an engine keeps nothing of what is done


def test_a_request_that_fails_fails_alone():
    def fragile(u, c, cond):
        return torch.where((cond == 2)[:, None, None] & (c < 0.7)[:, None, None], torch.nan, net(u, c, cond))

    one = model(fragile, classes=3)
    engine, s = fs.Engine(one, batch=B), sampler("multistep", one)
    good, bad = engine.submit(s, range(7), labels=1), engine.submit(s, [3, 5, 8], labels=[1, 2, 1])
    queued = engine.submit(s, range(30, 42), labels=0)
    with pytest.raises(fs.NonFiniteError, match=r"^id 5 is NaN or Inf at row (\d+) \(t = 0\.\d+") as said:
        bad.result()
    with pytest.raises(fs.NonFiniteError, match=r"first id 5 at row (\d+)") as alone:
        s.run([5], labels=2)
    assert str(said.value).split("row ")[1][:8] == str(alone.value).split("row ")[1][:8]
    assert torch.equal(good.result(), s.run(range(7), labels=1))
    assert torch.equal(queued.result(), s.run(range(30, 42), labels=0))
    assert isinstance(bad.exception(), fs.NonFiniteError)

    tight = sampler("adaptive", one, solver=fs.BogackiShampine(1e-7, 1e-7, attempts=20))
    failed, fine = engine.submit(tight, [1], labels=0), engine.submit(s, [1], labels=0)
    assert isinstance(failed.exception(), fs.StepSizeError) and len(fine.result()) == 1


def test_what_a_network_raises_ends_those_in_its_lanes():
    trouble: list[BaseException] = []

    def raising(u, c):
        if trouble:
            raise trouble.pop()
        return net(u, c)

    one = model(raising)
    engine, s = fs.Engine(one, batch=B), sampler("ode", one)
    lost, queued = engine.submit(s, range(B)), engine.submit(s, range(B, 2 * B))
    trouble.append(RuntimeError("out of memory, it says"))
    with pytest.raises(RuntimeError, match="out of memory, it says"):
        [engine.submit(s, range(B)).result() for _ in range(3)]
    for handle in (lost, queued):
        assert isinstance(handle.exception(), RuntimeError) or torch.equal(handle.result(), s.run(handle.ids))
    assert torch.equal(engine.submit(s, range(7)).result(), s.run(range(7)))
    trouble.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        engine.submit(s, [1]).result()
    assert torch.equal(engine.submit(s, range(7)).result(), s.run(range(7)))

    def waiting(u, c):
        handle.result()
        return u

    other = model(waiting)
    handle = (stuck := fs.Engine(other, batch=B)).submit(sampler("ode", other), [1])
    with pytest.raises(RuntimeError, match="in the middle of a tick"):
        handle.result()
    assert stuck.waiting == 0


@pytest.mark.parametrize("started", [pytest.param(False, marks=pytest.mark.slow), True])
def test_threads_may_submit_and_wait_at_once(started):
    samplers = {name: sampler(name) for name in ("ode", "sde", "guided", "adaptive")}
    asked = [requests(samplers, 4, seed) for seed in range(4)]
    results: dict[int, list[Tensor]] = {}
    with fs.Engine(MODEL, batch=B) as engine:
        if started:
            engine.start().start()

        def client(k: int) -> None:
            handles = [engine.submit(one, **fields) for one, fields in asked[k]]
            results[k] = [handle.result(timeout=60) for handle in handles]

        threads = [threading.Thread(target=client, args=(k,)) for k in range(len(asked))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if started:
            late = engine.submit(samplers["ode"], [1], labels=0)
            assert next(as_completed([late], timeout=60)) is late  # as any future

            async def one() -> Tensor:
                return await asyncio.wrap_future(engine.submit(samplers["ode"], [1], labels=0))

            assert torch.equal(asyncio.run(one()), late.result())
        last = engine.submit(samplers["ode"], range(7), labels=0)
    assert last.done() and not [t for t in threading.enumerate() if t.name == "fastscore-engine"]
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(samplers["ode"], [1], labels=0)
    with pytest.raises(RuntimeError, match="closed"):
        engine.start()
    for k, one in results.items():
        for x, (s, fields) in zip(one, asked[k], strict=True):
            assert torch.equal(x, s.run(**fields))
    assert len(results) == len(asked)


def test_closing_in_a_hurry_cancels():
    one = sampler()
    with pytest.raises(KeyError), fs.Engine(MODEL, batch=B) as engine:
        handle = engine.submit(one, range(30), labels=0)
        raise KeyError
    assert handle.cancelled() and engine.waiting == 0
    slow = threading.Event()

    def held(u, c):
        slow.wait(5)
        return net(u, c)

    engine = fs.Engine(model(held), batch=B).start()
    handle = engine.submit(sampler("ode", engine.model), [1])
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.01)
    assert time.monotonic() - start < 4
    slow.set()
    assert len(handle.result(60)) == 1
    engine.close()


def refusals() -> dict[str, tuple[object, dict]]:
    ode = sampler()
    return {
        "must be a fastscore.Sampler": (7, {}),
        "another model": (sampler("ode", model(classes=3, null=3)), {}),
        "batch = 4, the engine 5": (sampler(batch=4), {}),
        "dtype = torch.float64": (sampler(dtype=torch.float64), {}),
        "backend = reference": (sampler(backend="reference"), {}),
        "parallel": (sampler(parallel=fs.Picard(3)), {}),
        "norm = 'batch'": (
            sampler(solver=fs.PredictorCorrector(fs.DDIM(), fs.Langevin(norm="batch"))), {},
        ),
        "momentum": (sampler("guided", guide=fs.APG(0.2, 0.1, -0.5)), {}),
        "noise": (ode, {"noise": torch.zeros(9, 1, 6)}),
        "known": (sampler("adaptive, noisy"), {"known": fs.Known(torch.zeros(SHAPE), torch.ones(SHAPE).bool())}),
        "label": (ode, {"labels": 7}),
        "id": (ode, {"ids": [-1]}),
        "seed": (ode, {"seed": -1}),
        "init": (ode, {"init": torch.zeros(SHAPE)}),
        "others": (ode, {"others": [[1]]}),
        "negative": (ode, {"negative": [1]}),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:Langevin with per-sample norms", "ignore:this grid")
def test_what_has_no_place_is_refused_by_name():
    engine = fs.Engine(MODEL, batch=B)
    for word, (one, fields) in refusals().items():
        with pytest.raises(ValueError, match=word):
            engine.submit(one, **{"ids": [0], "labels": 0, **fields})
    assert engine.waiting == 0
    with pytest.raises(TypeError, match="lables"):
        engine.submit(sampler(), [0], lables=1)
    with pytest.raises(ValueError, match="must be a ScoreModel"):
        fs.Engine(net)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="batch = 0"):
        fs.Engine(MODEL, batch=0)
    both = fs.JointModel(lambda u, c, cond=None: u, {"a": fs.Part((2,), fs.VP())})
    with pytest.raises(ValueError, match=r"fastscore\.Sampler|another model"):
        engine.submit(fs.JointSampler(both, grid=fs.uniform(4), batch=B), [0])


@pytest.mark.parametrize("n", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_bad_requests_get_errors_of_their_own(n):
    rng, one, engine = random.Random(0), sampler(), fs.Engine(MODEL, batch=B)
    anything = [
        None,
        -1,
        1 << 65,
        0.5,
        float("nan"),
        "x",
        [],
        [None],
        {},
        object(),
        torch.nan,
        torch.ones(2, 2),
        [1.5],
        True,
    ]
    good, refused = [], 0
    for k in range(n):
        fields: dict = {"ids": [k], "labels": k % 3}
        fields[rng.choice(["ids", "seed", "labels", "negative", "known", "prior_ids", "init", "y", "cond"])] = (
            rng.choice(anything)
        )
        try:
            engine.submit(one, **fields)
        except ValueError as error:
            refused += 1
            assert str(error)
        if k % 100 == 0:
            good.append((k, engine.submit(one, [k], labels=1)))
    assert refused > n / 2
    for k, handle in good:
        assert torch.equal(handle.result(), one.run([k], labels=1))
    for handle in engine.stream():
        assert handle.exception() is None


def test_a_network_may_change_between_turns_and_move_where_nobody_waits():
    linear = torch.nn.Linear(6, 6)
    one = model(lambda u, c: linear(u.flatten(1)).view_as(u), modules=(linear,))
    engine, s = fs.Engine(one, batch=B), sampler("ode", one)
    before = engine.submit(s, [1]).result()
    with torch.no_grad():
        linear.weight.mul_(0.5)
    assert torch.equal(engine.submit(s, [1]).result(), s.run([1])) and not torch.equal(before, s.run([1]))
    linear.double()
    with pytest.raises(ValueError, match="float64"):
        engine.submit(s, [1])
    linear.bfloat16()
    moved = engine.submit(s, range(7))
    assert torch.equal(moved.result(), s.run(range(7))) and s.net_dtype == torch.bfloat16
    queued = engine.submit(s, [1])
    linear.float().train()
    with pytest.raises(ValueError, match="moved or cast while requests are under way"):
        engine.submit(s, [2])
    assert queued.cancel() and not list(engine.stream()) and engine.waiting == 0
    assert len(engine.submit(s, [2]).result()) == 1
    assert torch.equal(engine.submit(s, [1]).result(), s.run([1])) and linear.training


def test_adaptive_requests_share_lanes_and_leave_other_lanes_alone():
    engine, s = fs.Engine(MODEL, batch=B), sampler("adaptive")
    alone = [s.run([k], labels=k % 3) for k in range(2 * B)]
    handles = [engine.submit(sampler("adaptive"), [k], labels=k % 3) for k in range(2 * B)]  # equal settings will do
    ticks = engine.ticks
    assert torch.equal(torch.cat([handle.result() for handle in handles]), torch.cat(alone))
    (group,) = engine._dispatch.groups.groups
    assert isinstance(group.lanes, StepLanes) and engine.ticks - ticks < 2 * B


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_solver_has_the_bits_that_it_has_alone():
    from fastscore.solvers.names import SOLVERS

    samplers = {}
    for name in [name for name in SOLVERS if name != "none"]:
        try:
            samplers[name] = fs.Sampler(MODEL, solver=name, steps=6, batch=B)
        except ValueError:
            samplers[name] = fs.Sampler(MODEL, solver=name, batch=B)
    for seed in range(2):
        order = dict(random.Random(seed).sample(sorted(samplers.items()), len(samplers)))
        check(fs.Engine(MODEL, batch=B), requests(order, len(samplers) + 20, seed))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_bundled_model_has_the_bits_that_it_has_alone():
    bundled = fs.load_model("fashion")
    samplers = [
        fs.Sampler(bundled, solver=name, steps=steps, batch=4, guidance=guidance)
        for name, steps, guidance in (("ddim", 2, None), ("er-sde", 3, None), ("dpmpp-2m", 3, fs.Guidance(2.0)))
    ]
    check(fs.Engine(bundled, batch=4), [(samplers[k % 3], {"ids": [k, k + 9], "labels": [k, 1]}) for k in range(6)])
