"""Recorded ticks: one for each set of forms that comes again and again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from fastscore.engine.capture import Recorder, first_reason
from fastscore.engine.recorded import frozen_in

MOST = 32  # recordings
AGAIN = 3  # times that a set of forms comes before it is worth one
COUNTED = 4096  # sets of forms, and ticks after which one that did not come is not worth its recording


class Replays:
    """What was recorded of ticks, as long as it is true.

    A recorder's memory ends with the last of what it recorded, so that there is a new one for what comes after.

    Args:
        recorder: makes a recorder of work over static buffers; None to do each tick anew. device: where they lie.
    """

    def __init__(self, recorder: Callable[[], Recorder] | None, device: torch.device) -> None:
        self.recorder, self.device = recorder, device
        self.calls: dict[Hashable, Callable[[], None]] = {}  # the one that was used last is the last
        self.used: dict[Hashable, int] = {}  # when, by count
        self.seen: dict[Hashable, int] = {}
        self.count = 0
        self.networks: list[Any] = []
        self.made: object = None
        self.current: Recorder | None = None

    def begin(self, *networks: object) -> None:
        """Forget what was recorded of networks whose tensors or code have been replaced since."""
        if self.recorder is None:
            return
        now = frozen_in(networks, self.device)
        if self.networks != now:
            self.forget()
            self.networks = now

    def forget(self) -> None:
        """Forget what was recorded, and what that has read."""
        self.calls.clear()
        self.used.clear()
        self.current = None

    def do(self, forms: Hashable, made: object, moving: Iterable[Tensor], work: Callable[[], None]) -> None:
        """Do some work as it was recorded, if it was, or anew.

        Args:
            forms: what tells this work from another.
            made: changes where a buffer that the work knows is made anew; no recording counts then.
            moving: what the work changes.
        """
        if self.recorder is None:
            work()
            return
        if self.made != made:
            self.forget()
            self.made = made
        self.count += 1
        call = self.calls.get(forms)
        if call is None and self._again(forms) and self._room():
            call = self._recorded(self.recorder, list(moving), work)
            if call is not None:
                self.calls[forms] = call
        if call is not None:
            self.used.pop(forms, None)
            self.used[forms] = self.count
        (call or work)()

    def _again(self, forms: Hashable) -> bool:
        """Return whether work of these forms has come often enough; what came long ago is not remembered for ever."""
        if len(self.seen) >= COUNTED:
            self.seen = dict.fromkeys(self.calls, AGAIN)
        self.seen[forms] = self.seen.get(forms, 0) + 1
        return self.seen[forms] >= AGAIN

    def _room(self) -> bool:
        """Return whether one more may be recorded, in place of one that has not come in a long time."""
        if len(self.calls) < MOST:
            return True
        oldest = next(iter(self.used))
        if self.count - self.used[oldest] <= COUNTED:
            return False
        del self.calls[oldest], self.used[oldest]
        return True

    def _recorded(
        self, recorder: Callable[[], Recorder], moving: list[Tensor], work: Callable[[], None]
    ) -> Callable[[], None] | None:
        """Return a call that does the work again, which is not yet done; None, from now on, where there can be none."""
        before = [v.clone() for v in moving]

        def reset() -> None:
            for own, v in zip(moving, before, strict=True):
                own.copy_(v)

        try:
            self.current = self.current or recorder()
            return self.current.record(reset, work)
        except Exception as error:  # of a network, a library or torch: nothing was recorded
            warnings.warn(f"no CUDA graph: the network cannot be captured ({first_reason(error)})", stacklevel=2)
            self.recorder = None
            self.forget()
            return None
        finally:
            reset()
