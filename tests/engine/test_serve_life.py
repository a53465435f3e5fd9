"""The long life of an engine: who joins it, what it forgets, what a failure half-way leaves, and what waiting costs."""

from __future__ import annotations

import gc
import random
import threading
import traceback
import weakref
from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastscore as fs
from fastscore.engine import handle as handles
from fastscore.engine import lane_groups, plan_table, replays
from fastscore.engine.jobs import AHEAD, Job, Waiting
from fastscore.engine.replays import Replays
from fastscore.engine.row_lanes import RowLanes
from fastscore.guidance import together, told
from fastscore.network import surroundings

B, SHAPE = 4, (6,)


class Net(nn.Module):
    """Drops half of its output in training mode."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)

    def forward(self, u: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        shift = 0.0 if cond is None else 0.1 * cond.to(u.dtype)[:, None]
        return self.drop(torch.tanh(u * self.linear.weight[0] + self.linear.bias)) + shift


def model(net: Any = None, **fields: Any) -> fs.ScoreModel:
    return fs.ScoreModel(net or Net(), SHAPE, fs.VP(), fs.Parametrization("eps"), **fields)


def sampler(one: fs.ScoreModel, steps: int = 3, **fields: Any) -> fs.Sampler:
    return fs.Sampler(one, **{"solver": fs.DDIM(), "steps": steps, "batch": B, **fields})


def led(one: fs.ScoreModel, other: fs.ScoreModel, steps: int = 3) -> fs.Sampler:
    return sampler(one, steps, guidance=fs.Guidance(2.0, model=other))


def test_networks_that_join_in_the_middle_of_a_turn_are_in_eval_mode():
    one, other = model(), model(Net(1))
    plain, guided = sampler(one), led(one, other, 6)
    expected, engine, late = guided.run([5]), fs.Engine(one, batch=B), list[fs.Handle]()
    first, rest = engine.submit(plain, [1]), engine.submit(plain, range(10, 40))
    first.add_done_callback(lambda _: late.append(engine.submit(guided, [5])))
    assert len(rest.result()) == 30 and torch.equal(late[0].result(), expected)
    assert one.net.training and other.net.training  # pyright: ignore


def test_groups_that_wait_are_kept_however_many_there_are(monkeypatch):
    monkeypatch.setattr(lane_groups, "KEPT", 2)
    one = model()
    samplers = [led(one, model(Net(k))) for k in range(1, 6)]
    expected, engine = [s.run([5]) for s in samplers], fs.Engine(one, batch=B)
    asked = [engine.submit(s, [5]) for s in samplers]
    for handle, x in zip(asked, expected, strict=True):
        assert torch.equal(handle.result(), x)


def test_second_networks_end_with_the_groups_that_they_were_for(monkeypatch):
    monkeypatch.setattr(lane_groups, "KEPT", 2)
    one, alive = model(), list[weakref.ref[Any]]()
    engine = fs.Engine(one, batch=B)
    for k in range(6):
        s = led(one, model(Net(k)))
        assert torch.equal(engine.submit(s, [k]).result(), s.run([k]))
        alive.append(weakref.ref(s.second.net))
        del s
    gc.collect()
    assert sum(ref() is not None for ref in alive) == 2


def test_nothing_is_kept_of_a_request_that_was_given_up():
    one = model()
    engine, s = fs.Engine(one, batch=B), sampler(one)
    for begun in (False, True):
        handle = engine.submit(s, range(100))
        request = weakref.ref(engine._dispatch.jobs[handle].request)
        if begun:
            next(iter(handle))
        assert handle.cancel() and engine.waiting == 0
        gc.collect()
        assert request() is None  # and nobody has driven the engine since
    assert torch.equal(engine.submit(s, range(9)).result(), s.run(range(9)))
    next(iter(engine.submit(s, range(100))))
    lanes = weakref.ref(engine._dispatch.groups.groups[0].lanes)
    engine.close(cancel=True)
    gc.collect()
    assert lanes() is None and not engine._dispatch.jobs


def test_who_keeps_an_error_keeps_no_lanes():
    trouble = [RuntimeError("out of memory, it says")]

    def raising(u: Tensor, c: Tensor) -> Tensor:
        if trouble:
            raise trouble.pop()
        return torch.tanh(u)

    one = model(raising)
    engine, s = fs.Engine(one, batch=B), sampler(one)
    lost = engine.submit(s, [1])
    lanes = weakref.ref(engine._dispatch.groups.groups[0].lanes)
    error = lost.exception()
    assert isinstance(error, RuntimeError) and error.__traceback__ is not None
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert names[-1] == "raising" and "evaluate" in names  # where it was raised is still to be read
    gc.collect()
    assert lanes() is None and torch.equal(engine.submit(s, [1]).result(), s.run([1]))


def test_a_callback_of_a_request_given_up_holds_no_lock():
    one = model()
    engine, s, done = fs.Engine(one, batch=B), sampler(one), list[bool]()

    def elsewhere(_: object) -> None:
        thread = threading.Thread(target=lambda: engine.submit(s, [1]).result())
        thread.start()
        thread.join(20)
        done.append(not thread.is_alive())

    handle = engine.submit(s, [0])
    handle.add_done_callback(elsewhere)
    assert handle.cancel() and done == [True]


def test_what_waits_costs_a_tick_nothing(monkeypatch):
    one, looked = model(), 0
    engine, s = fs.Engine(one, batch=B), sampler(one)
    asked = [engine.submit(s, [k]) for k in range(500)]
    done, left = handles.Handle.done, Job.left

    def counted(self: Any) -> bool:
        nonlocal looked
        looked += 1
        return done(self)

    def counted_left(self: Any) -> int:
        nonlocal looked
        looked += 1
        return left.fget(self)  # pyright: ignore

    monkeypatch.setattr(handles.Handle, "done", counted)
    monkeypatch.setattr(Job, "left", property(counted_left))
    asked[B].result()
    assert engine.ticks == 6 and looked < 200
    late = engine.submit(s, [1000])
    assert looked < 210 and late is not None


def test_who_waits_comes_up_as_if_all_were_looked_at():
    rng = random.Random(0)
    for _ in range(30):
        lanes, entered, place, waiting = rng.randint(1, 6), rng.randint(0, 120), 0, Waiting()
        jobs = list[Any]()
        for _ in range(rng.randint(1, 40)):
            n = rng.randint(1, 5)
            job: Any = Job(None, None, [0] * n, None, None, rng.randint(1, 4), place)  # pyright: ignore
            place, job.entered = place + n, rng.choice([0, 0, 0, rng.randint(0, n)])
            jobs.append(job)
            waiting.put(job)
            if rng.random() < 0.3:
                job.held = rng.randint(0, 2) if job.entered else 0
                waiting.put(job)
            if rng.random() < 0.1:
                waiting.drop(jobs.pop())
        free = list(range(rng.randint(0, lanes)))
        widths = {job: rng.randint(1, 2) for job in jobs}

        def turn(job: Any, entered: int = entered, lanes: int = lanes) -> tuple[bool, int, int]:
            late = job.place + job.entered + AHEAD * lanes <= entered
            return not late, 0 if late else -job.length, job.place

        held, taken, left = {job: job.held for job in jobs}, dict[Any, int](), len(free)
        while ready := [job for job in jobs if job.entered + taken.get(job, 0) < len(job.request)]:
            job = min(ready, key=lambda job: (held[job], turn(job)))
            if widths[job] > left:
                break
            left, held[job], taken[job] = left - widths[job], held[job] + widths[job], taken.get(job, 0) + 1
        assert len(waiting._first(len(free), lambda job: False)) <= len(free)
        shares = waiting.shares(free, widths.__getitem__, lanes, entered)
        assert {job: len(own) // widths[job] for job, own in shares.items()} == taken


def test_streams_end_in_the_middle_and_miss_nothing():
    one = model()
    engine, s = fs.Engine(one, batch=B), sampler(one)
    asked = [engine.submit(s, [k]) for k in range(6)]
    stream = engine.stream()
    seen = [next(stream)]
    asked.append(engine.submit(s, [6]))
    asked[-1].result()  # done before the stream looks again
    asked.append(engine.submit(s, []))
    seen += stream
    assert set(seen) == set(asked) and len(seen) == len(asked)
    stopped = engine.stream([engine.submit(s, range(9)), late := engine.submit(s, [7])])
    next(stopped)
    stopped.close()  # pyright: ignore
    assert torch.equal(late.result(), s.run([7])) and not engine._streams
    with pytest.raises(ValueError, match="none of this engine's"):
        next(fs.Engine(one, batch=B).stream([late]))


def test_a_thread_that_cannot_work_says_so_to_who_waits(monkeypatch):
    monkeypatch.setattr(surroundings, "PATIENCE", 0.05)
    one = model()
    engine, s = fs.Engine(one, batch=B).start(), sampler(one)
    expected = s.run([1])
    with surroundings.undisturbed(torch.float64):  # as a run of another thread
        assert isinstance(engine.submit(s, [1]).exception(60), RuntimeError)
    assert torch.equal(engine.submit(s, [1]).result(60), expected)
    engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_can_be_started_again():
    trouble = [SystemExit(0)]

    def leaving(u: Tensor, c: Tensor) -> Tensor:
        if trouble:
            raise trouble.pop()
        return torch.tanh(u)

    one = model(leaving)
    engine, s = fs.Engine(one, batch=B).start(), sampler(one)
    assert isinstance(engine.submit(s, [1]).exception(60), SystemExit)
    assert engine._thread is not None
    engine._thread.join(60)
    engine.start()
    done = threading.Event()
    engine.submit(s, [1]).add_done_callback(lambda _: done.set())
    assert done.wait(60)  # and nobody else drives it
    engine.close()


class Once:
    """A function that fails the first time, or the first time that something holds of its arguments."""

    def __init__(self, function: Any, when: Any = lambda *args: True) -> None:
        self.function, self.when, self.failed = function, when, False

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        return lambda *args, **kwargs: self(owner, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.failed and self.when(*args):
            self.failed = True
            raise MemoryError("no room")
        return self.function(*args, **kwargs)


def test_a_plan_that_was_written_by_half_is_not_there(monkeypatch):
    one = model()
    engine, s = fs.Engine(one, batch=B), sampler(one)
    monkeypatch.setattr(plan_table, "lower", Once(plan_table.lower))
    with pytest.raises(MemoryError):
        engine.submit(s, range(3)).result()
    assert torch.equal(engine.submit(s, range(3)).result(), s.run(range(3)))
    other = sampler(one, 200)
    columns = engine._dispatch.groups.groups[0].lanes.plans.columns  # pyright: ignore
    monkeypatch.setattr(
        plan_table.PlanTable, "_empty", Once(plan_table.PlanTable._empty, lambda table, rows: rows > len(columns.table))
    )
    first = engine.submit(sampler(one, 100), range(2))
    second = engine.submit(other, range(2))  # there is no room for both
    assert [type(h.exception()) for h in (first, second)].count(MemoryError) == 1
    for again in (sampler(one, 100), other, s):
        assert torch.equal(engine.submit(again, range(2)).result(), again.run(range(2)))


def test_samples_that_entered_by_half_leave_their_lanes_as_they_were(monkeypatch):
    one = model(classes=3, null=3)
    engine, guided, plain = fs.Engine(one, batch=B), sampler(one, guidance=fs.Guidance(2.0)), sampler(one)
    expected = plain.run(range(B), labels=1)
    assert torch.equal(engine.submit(plain, range(B), labels=1).result(), expected)
    outputs = engine._dispatch.groups.groups[0].lanes.outputs  # pyright: ignore

    class Full:
        def __setitem__(self, *_: object) -> None:
            raise MemoryError("no room")

    with monkeypatch.context() as planted:
        planted.setattr(outputs, "partner", Full())
        with pytest.raises(MemoryError):
            engine.submit(guided, [0], labels=0).result()
    beside, after = engine.submit(plain, range(2), labels=1), engine.submit(guided, range(3), labels=0)
    assert torch.equal(beside.result(), expected[:2])  # one of them in the lane that a second output did not get
    assert torch.equal(after.result(), guided.run(range(3), labels=0))


def test_lanes_of_a_request_that_failed_do_not_come_up_again(monkeypatch):
    """Its further samples cannot enter in the very tick in which its first ones are done."""
    one = model()
    engine = fs.Engine(one, batch=B)
    short, long = sampler(one, 2), sampler(one, 3)
    fine, failing = engine.submit(short, [0]), engine.submit(long, range(5))
    monkeypatch.setattr(RowLanes, "enter", Once(RowLanes.enter, lambda own, lanes, bound, part: 2 in part.ids))
    beside = engine.submit(long, [9])
    assert torch.equal(fine.result(), short.run([0]))
    with pytest.raises(MemoryError):
        failing.result()
    assert len(failing.arrived) == 0 and torch.equal(beside.result(), long.run([9]))


def test_no_room_for_a_large_request_is_its_own_trouble(monkeypatch):
    one = model()
    engine, s = fs.Engine(one, batch=B), sampler(one)
    expected = s.run(range(9))
    large, small = engine.submit(s, range(50)), engine.submit(s, range(9))
    monkeypatch.setattr(Tensor, "new_empty", Once(Tensor.new_empty, lambda x, n, *_: n == 50))
    assert torch.equal(small.result(), expected)
    with pytest.raises(MemoryError):
        large.result()


@pytest.mark.parametrize("kind", ["conditions", "together", "adaptive"])
def test_inputs_that_were_made_by_half_are_made_again(monkeypatch, kind):
    def net(u: Tensor, c: Tensor, cond: Tensor) -> Tensor:
        return torch.tanh(u) * (1.0 + cond.sum(1, keepdim=True).to(u))

    one, dtypes = model(net, cond_shape=(2,), null=torch.zeros(2)), (torch.int64, torch.float32)
    fields: dict[str, Any] = {
        "together": {"guidance": fs.Guidance(2.0), "guided": "batched"},
        "adaptive": {"solver": fs.BogackiShampine(0.1, 0.1), "steps": None},
    }.get(kind, {})
    known = fs.Known(torch.zeros(6), torch.arange(6) < 2)

    def run(s: fs.Sampler, k: int) -> Tensor:
        return s.run(
            range(3), cond=torch.full((2,), 0.5, dtype=dtypes[k]), known=known if k and kind == "adaptive" else None
        )

    s, fresh = sampler(one, **fields), sampler(one, **fields)
    run(s, 0)
    with monkeypatch.context() as planted:
        if kind == "conditions":
            planted.setattr(told, "each", Once(told.each))
        elif kind == "together":
            planted.setattr(together, "each", Once(together.each))
        else:
            planted.setattr(Tensor, "new_zeros", Once(Tensor.new_zeros))
        with pytest.raises(MemoryError):
            run(s, 1)
    assert torch.equal(run(s, 1), run(fresh, 1))


def test_recordings_follow_what_is_asked_for_now(monkeypatch):
    """Work that has not come in a long time makes room, a set of forms can be new at any age, and nothing piles up."""
    monkeypatch.setattr(replays, "MOST", 2)
    monkeypatch.setattr(replays, "COUNTED", 20)
    made, x = list[Any](), torch.zeros(2)

    def recorder() -> Any:
        made.append(SimpleNamespace(record=lambda reset, work: work))
        return made[-1]

    kept = Replays(recorder, torch.device("cpu"))

    def come(*forms: int) -> None:
        for name in forms:
            kept.do(name, None, [x], lambda: None)

    come(*[1] * 3, *[2] * 3, *[3] * 3)
    assert [*kept.calls] == [1, 2]
    come(*range(100, 130), *[1] * 3, *[3] * 3)
    assert set(kept.calls) == {1, 3} and len(kept.seen) <= 22 and len(made) == 1
    kept.do(1, "moved", [x], lambda: None)
    assert set(kept.calls) == {1} and len(made) == 2  # a recorder ends with what it recorded

    def broken(*_: object) -> Any:
        raise RuntimeError("no stream is left")

    made[-1].record = broken
    with pytest.warns(UserWarning, match="no stream is left"):
        for _ in range(3):
            kept.do(7, "moved", [x], lambda: None)
    assert not kept.calls and kept.recorder is None  # nobody would look whether they are still true


@pytest.mark.slow
def test_many_small_requests_leave_nothing():
    one = model()
    engine = fs.Engine(one, batch=B)

    def rounds(n: int) -> int:
        for k in range(n):
            handle = engine.submit(sampler(one, 2 + k % 3), [k], seed=k)
            if k % 5 == 0:
                handle.cancel()
                with pytest.raises(CancelledError):
                    handle.result()
            else:
                handle.result()
        del handle
        gc.collect()
        return len(gc.get_objects())

    before = rounds(20)
    assert rounds(60) - before < 40
