"""A discrete-event simulation of workers on a shard store: what they ask of the store, lose and do twice.

A worker goes through its part of the shards: with leases it takes each by a small object, renewed while it computes,
and when its part is done it helps others. To find work it lists one folder of 1,000 shards at a time, each at random,
and tries one missing shard there; when that fails everywhere it looked it waits, twice as long each time. A stopped
worker's lease stays until it is stale; its replacement comes later and lists the part again. A hung worker goes on
after others have taken over its shard. Requests take no time here: how long the store would need for them is read off
afterwards, from what was asked in each second.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import numpy as np

HOUR = 3600.0
FOLDER = 1000  # shards of a folder, as in shards/0123/0123456.npz, and names of a page of a listing
VISITS = 32  # folders that a worker looks into before it waits
KINDS = ("create", "renew", "delete", "look", "list")  # of requests; the first three are writes
FREE, LEASED, DONE = range(3)
LOOK, FINISH, STOP, HANG, EXPIRE = range(5)


@dataclass(frozen=True)
class Setting:
    """A run and the machines it is on.

    Attributes:
        samples, shard: samples in all, and in a shard.
        workers, rate: how many, and samples a second of one.
        sample_bytes: bytes of a sample as it is stored.
        spread: relative standard deviation of the workers' speeds.
        stopped, restart: share of the workers that is stopped an hour, and seconds until one is back at work.
        hung, hang: share of the workers that hangs an hour, and for how many seconds.
        leases, patience: whether workers take shards and help others, and seconds until a lease is stale.
        strided: whether a part is every N-th shard, which is spread over all folders; else it is a stretch of shards.
        present: share of the shards that are there at the start, as after a stop of all workers.
        ramp: seconds within which the workers start.
        seed: of everything random.
    """

    samples: int = 1_000_000_000
    shard: int = 1024
    workers: int = 10_000
    rate: float = 10.0
    sample_bytes: int = 256 * 256 * 3
    spread: float = 0.05
    stopped: float = 0.01
    restart: float = 300.0
    hung: float = 0.001
    hang: float = 600.0
    leases: bool = True
    patience: float = 60.0
    strided: bool = False
    present: float = 0.0
    ramp: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "shard", "workers", "rate", "sample_bytes", "patience"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be above 0")
        for name in ("spread", "stopped", "restart", "hung", "hang", "ramp"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)} must be finite and at least 0")
        if not 0 <= self.present < 1:
            raise ValueError(f"present = {self.present} must be at least 0 and below 1")

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-self.samples // self.shard)

    @property
    def seconds(self) -> float:
        """Seconds that a worker of mean speed takes for a shard."""
        return self.shard / self.rate

    @property
    def ideal(self) -> float:
        """Seconds of a run in which every worker computes all the time and nothing is lost."""
        return (self.count - int(self.present * self.count)) * self.seconds / self.workers


@dataclass
class Outcome:
    """What happened.

    Attributes:
        seconds: until the last shard was there.
        restarts: workers that were stopped, and came back.
        lost: worker-seconds of shards that stops ended half-way.
        twice: shards that were computed once more than needed.
        asked: requests by kind: create, renew, delete, look (does it exist?), list.
        writes, reads: requests of each second.
        stored: bytes of each second.
    """

    seconds: float = 0.0
    restarts: int = 0
    lost: float = 0.0
    twice: int = 0
    asked: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("create", "renew", "delete", "look", "list"), 0)
    )
    writes: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    stored: list[float] = field(default_factory=list)

    def ask(self, kind: str, at: float, n: int = 1) -> None:
        """Count requests at a time."""
        self.asked[kind] += n
        _add(self.writes if kind in KINDS[:3] else self.reads, at, n)


def _add(series: list[float], at: float, n: float) -> None:
    second = int(at)
    if second >= len(series):
        series.extend([0.0] * (second + 1 - len(series)))
    series[second] += n


def backlog(asked: list[float], served: float) -> float:
    """Return the longest wait, in seconds, of requests at a store that serves so many a second."""
    waiting = worst = 0.0
    for n in asked:
        waiting = max(0.0, waiting + n - served)
        worst = max(worst, waiting)
    return worst / served


def peak(series: list[float], window: int = 10) -> float:
    """Return the highest mean over so many consecutive seconds."""
    if not series:
        return 0.0
    width = min(window, len(series))
    sums = np.cumsum([0.0, *series])
    return float((sums[width:] - sums[:-width]).max() / width)


class Simulation:
    """One run of a setting; ``run`` once."""

    def __init__(self, setting: Setting) -> None:
        s, self.rng = setting, np.random.default_rng(setting.seed)
        self.setting, self.out, self.heap = s, Outcome(), []
        self.state = np.full(s.count, FREE, np.uint8)
        self.state[self.rng.permutation(s.count)[: int(s.present * s.count)]] = DONE
        self.left = s.count - int(s.present * s.count)
        self.holder: dict[int, int] = {}  # of leases: shard to worker
        deviations = self.rng.standard_normal(s.workers).clip(-3, 3)
        self.speed = (s.seconds / (1.0 + s.spread * deviations).clip(0.1)).tolist()
        self.busy = [-1] * s.workers  # the shard that it computes
        self.began, self.due = [0.0] * s.workers, [0.0] * s.workers
        self.life, self.waits, self.todo = [0] * s.workers, [0] * s.workers, [0] * s.workers
        self.fresh = [True] * s.workers  # started, and has listed nothing yet

    def part(self, worker: int) -> range:
        """Return the shards that a worker begins with."""
        count, workers = self.setting.count, self.setting.workers
        if self.setting.strided:
            return range(worker, count, workers)
        return range(count * worker // workers, count * (worker + 1) // workers)

    def run(self) -> Outcome:
        """Simulate until every shard is there."""
        s = self.setting
        for worker, at in enumerate(np.sort(self.rng.uniform(0.0, s.ramp, s.workers)).tolist()):
            self._push(at, LOOK, worker)
            self._fail(at, worker, STOP, s.stopped)
            self._fail(at, worker, HANG, s.hung)
        steps = {LOOK: self._look, FINISH: self._finish, STOP: self._stop, HANG: self._hang, EXPIRE: self._expire}
        while self.left:
            at, kind, worker, number, life = heapq.heappop(self.heap)
            if life == self.life[worker] or kind in (STOP, HANG, EXPIRE):
                steps[kind](at, worker, number)
                self.out.seconds = at
        self.out.twice += sum(number >= 0 for number in self.busy)  # all of them are there by now
        return self.out

    def _push(self, at: float, kind: int, worker: int, number: int = -1) -> None:
        heapq.heappush(self.heap, (at, kind, worker, number, self.life[worker]))

    def _fail(self, at: float, worker: int, kind: int, share: float) -> None:
        if share:
            self._push(at + float(self.rng.exponential(HOUR / share)), kind, worker)

    def _look(self, at: float, worker: int, number: int) -> None:
        s = self.setting
        if self.fresh[worker]:
            self.fresh[worker] = False
            part = self.part(worker)
            whole = math.ceil((s.count - self.left) / FOLDER) or 1
            own = part[-1] // FOLDER - part[0] // FOLDER + 1 if part else 0
            self.out.ask("list", at, whole if s.strided else own)
        number = self._next_own(at, worker)
        if number < 0 and s.leases:
            number = self._help(at, worker)
        if number >= 0:
            self._begin(at, worker, number)
        elif s.leases:
            self._push(at + s.patience * 2.0 ** self.waits[worker], LOOK, worker)
            self.waits[worker] += 1

    def _next_own(self, at: float, worker: int) -> int:
        part = self.part(worker)
        while self.todo[worker] < len(part):
            number = part[self.todo[worker]]
            self.todo[worker] += 1
            if self.state[number] == FREE:
                return number
            if self.state[number] == LEASED:
                self.out.ask("create", at)  # refused
        return -1

    def _help(self, at: float, worker: int) -> int:
        folders = -(-self.setting.count // FOLDER)
        first, step = int(self.rng.integers(folders)), 0
        while step < min(VISITS, folders):
            low = (first + step * 7919) % folders * FOLDER
            step += 1
            self.out.ask("list", at)
            states = self.state[low : low + FOLDER]
            missing = np.flatnonzero(states != DONE)
            if len(missing):
                k = int(missing[self.rng.integers(len(missing))])
                if states[k] == FREE:
                    return low + k
                self.out.ask("create", at)  # refused
        return -1

    def _begin(self, at: float, worker: int, number: int) -> None:
        self.busy[worker], self.began[worker], self.due[worker] = number, at, at + self.speed[worker]
        self.state[number] = LEASED
        if self.setting.leases:
            self.holder[number], self.waits[worker] = worker, 0
            self.out.ask("create", at)
            self.out.ask("look", at)
        self._push(self.due[worker], FINISH, worker, number)

    def _renewed(self, worker: int, until: float) -> None:
        if self.setting.leases:
            interval, began = self.setting.patience / 6.0, self.began[worker]
            for k in range(1, int((until - began) / interval) + 1):
                self.out.ask("renew", began + k * interval)

    def _finish(self, at: float, worker: int, number: int) -> None:
        self._renewed(worker, at)
        self.out.ask("create", at)
        if self.setting.leases:
            self.out.ask("delete", at)
        if self.state[number] == DONE:
            self.out.twice += 1
        else:
            self.state[number] = DONE
            self.left -= 1
            _add(self.out.stored, at, self.setting.shard * self.setting.sample_bytes)
        self.holder.pop(number, None)
        self.busy[worker] = -1
        self._look(at, worker, -1)

    def _stop(self, at: float, worker: int, number: int) -> None:
        s, number = self.setting, self.busy[worker]
        self.out.restarts += 1
        self.life[worker] += 1
        if number >= 0:
            self._renewed(worker, at)
            self.out.lost += at - self.began[worker]
            self.busy[worker] = -1
            self._push(at + s.patience if s.leases else at, EXPIRE, worker, number)
            if number in self.part(worker):
                self.todo[worker] = self.part(worker).index(number)
        self.fresh[worker] = True
        self._push(at + s.restart, LOOK, worker)
        self._fail(at + s.restart, worker, STOP, s.stopped)

    def _hang(self, at: float, worker: int, number: int) -> None:
        s, number = self.setting, self.busy[worker]
        if number >= 0:
            self.life[worker] += 1
            self.due[worker] += s.hang
            self.began[worker] += s.hang  # it renews nothing meanwhile
            self._push(self.due[worker], FINISH, worker, number)
            if s.leases and s.hang > s.patience:
                self._push(at + s.patience, EXPIRE, worker, number)
        self._fail(at, worker, HANG, s.hung)

    def _expire(self, at: float, worker: int, number: int) -> None:
        if self.state[number] == LEASED and self.holder.get(number, worker) == worker:
            self.state[number] = FREE
            self.holder.pop(number, None)
