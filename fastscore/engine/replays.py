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
COUNTED = 4096  # sets of forms


class Replays:
    """What was recorded of ticks, as long as it is true.

    Args:
        recorder: of work over static buffers; None to do each tick anew. device: where they lie.
    """

    def __init__(self, recorder: Recorder | None, device: torch.device) -> None:
        self.recorder, self.device = recorder, device
        self.calls: dict[Hashable, Callable[[], None]] = {}
        self.seen: dict[Hashable, int] = {}
        self.networks: list[Any] = []
        self.made: object = None

    def begin(self, *networks: object) -> None:
        """Forget what was recorded of networks whose tensors or code have been replaced since."""
        if self.recorder is None:
            return
        now = frozen_in(networks, self.device)
        if self.networks != now:
            self.calls.clear()
            self.networks = now

    def do(self, forms: Hashable, made: object, moving: Iterable[Tensor], work: Callable[[], None]) -> None:
        """Do some work as it was recorded, if it was, or anew.

        Args:
            forms: what tells this work from another.
            made: changes where a buffer that the work knows is made anew; no recording counts then.
            moving: what the work changes.
        """
        if self.made != made:
            self.calls.clear()
            self.made = made
        call = self.calls.get(forms)
        if call is None and len(self.seen) < COUNTED:
            self.seen[forms] = self.seen.get(forms, 0) + 1
        worth = self.seen.get(forms, 0) >= AGAIN and len(self.calls) < MOST
        if call is None and worth and self.recorder is not None:
            call = self._recorded(self.recorder, list(moving), work)
            if call is not None:
                self.calls[forms] = call
        (call or work)()

    def _recorded(
        self, recorder: Recorder, moving: list[Tensor], work: Callable[[], None]
    ) -> Callable[[], None] | None:
        """Return a call that does the work again, which is not yet done; None, from now on, where there can be none."""
        before = [v.clone() for v in moving]

        def reset() -> None:
            for own, v in zip(moving, before, strict=True):
                own.copy_(v)

        try:
            return recorder.record(reset, work)
        except Exception as error:  # of a network, a library or torch: nothing was recorded
            warnings.warn(f"no CUDA graph: the network cannot be captured ({first_reason(error)})", stacklevel=2)
            self.recorder = None
            return None
        finally:
            reset()
