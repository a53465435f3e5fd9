"""Requests under way, and which of them enter free lanes next; a tick looks at no more of them than it has lanes."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastscore.engine.handle import Promise
from fastscore.engine.request import Request
from fastscore.guidance.mixture import BoundPlan

AHEAD = 4  # batches of samples that may enter before one whose turn it is


@dataclass(eq=False)
class Job:
    """A request under way: how many of its samples have entered lanes, are in some, and have arrived.

    Attributes:
        bound: the plan; None of an adaptive solver. group: whose lanes its samples are in.
        length: evaluations of the plan; 0 of an adaptive solver. place: how many samples were asked for before.
        held: lanes that its samples are in.
    """

    handle: Promise
    sampler: Any
    request: Request
    bound: BoundPlan | None
    group: Any
    length: int
    place: int
    entered: int = 0
    held: int = 0
    done: int = 0

    @property
    def left(self) -> int:
        """How many samples have not entered."""
        return len(self.request) - self.entered


class Waiting:
    """The requests of one group that have samples left to enter.

    Those that hold lanes are no more than there are lanes. The others, of which there may be any number, are kept in
    both orders in which they may come up.
    """

    def __init__(self) -> None:
        self.holding: dict[Job, None] = {}
        self.by_place: list[tuple[int, Job]] = []  # no two have one place
        self.by_length: list[tuple[int, int, Job]] = []
        self.queued: set[Job] = set()

    def put(self, job: Job) -> None:
        """Take notice of a request that has come, or whose samples have entered or left lanes."""
        if job.held and job.left:
            self.drop(job)
            self.holding[job] = None
        elif not job.left:
            self.drop(job)
        elif job not in self.queued:
            self.holding.pop(job, None)
            self.queued.add(job)
            insort(self.by_place, (job.place, job))
            insort(self.by_length, (-job.length, job.place, job))

    def drop(self, job: Job) -> None:
        """Forget a request, if it is here."""
        self.holding.pop(job, None)
        if job in self.queued:
            self.queued.remove(job)
            del self.by_place[bisect_left(self.by_place, (job.place,))]
            del self.by_length[bisect_left(self.by_length, (-job.length, job.place))]

    def shares(self, free: list[int], width: Callable[[Job], int], lanes: int, entered: int) -> dict[Job, list[int]]:
        """Return which requests get which free lanes: each goes to the one that holds fewest; see Engine.

        Args:
            width: how many lanes a sample of a request takes; those of its second outputs are the last ones it gets.
            lanes: how many there are. entered: samples that have entered any lanes.
        """

        def late(job: Job) -> bool:
            return job.place + job.entered + AHEAD * lanes <= entered

        def turn(job: Job) -> tuple[bool, int, int]:
            return not late(job), 0 if late(job) else -job.length, job.place

        if not free:
            return {}
        waiting = [(job.held, turn(job), job) for job in [*self.holding, *self._first(len(free), late)]]
        heapq.heapify(waiting)
        taken: dict[Job, list[list[int]]] = {}
        while waiting and len(free) >= (size := width(waiting[0][2])):
            held, order, job = waiting[0]
            own = taken.setdefault(job, [])
            own.append(free[:size])
            free = free[size:]
            if len(own) < job.left:
                heapq.heapreplace(waiting, (held + size, order, job))
            else:
                heapq.heappop(waiting)
        return {job: [lane for of in zip(*own, strict=True) for lane in of] for job, own in taken.items()}

    def _first(self, n: int, late: Callable[[Job], bool]) -> dict[Job, None]:
        """Return the first n of the requests that hold no lanes; who is late came before those that are not."""
        first: dict[Job, None] = {}
        for _, job in self.by_place:
            if len(first) == n or not late(job):
                break
            first[job] = None
        for _, _, job in self.by_length:
            if len(first) == n:
                break
            first[job] = None
        return first
