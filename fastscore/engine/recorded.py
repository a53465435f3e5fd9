"""Recordings that are kept for as long as what they froze stays as it was, and work that is recorded once.

A CUDA graph knows tensors by their addresses, and code not at all: weights that are replaced, a network that is
compiled anew and static inputs that are made in another size all leave it with what was. So that is watched.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar
from weakref import WeakMethod

import torch

from fastscore.engine.capture import Recorder, first_reason
from fastscore.engine.cuda_graphs import CudaGraphs, Work
from fastscore.network.prepared import Prepared
from fastscore.network.surroundings import all_behind
from fastscore.network.watch import frozen

Made = TypeVar("Made")


def frozen_in(networks: tuple[object, ...], device: torch.device) -> list[object]:
    """Return what a recording on a device has frozen of networks: the code that ran, and where tensors lie."""
    code = [id(net.call) for net in networks if isinstance(net, Prepared)]
    modules, tensors = all_behind(*networks)
    loose = [
        # Of a tensor of the host's a copy was captured: there what it holds counts too.
        (t.data_ptr(), t.shape, t.stride(), t.is_inference() or t.device == device or t._version)
        for t in tensors
    ]
    return [*code, *frozen(modules), loose]


class Recorded(Generic[Made]):
    """Something that was recorded: made on first use, and again once something that it froze has changed.

    Args:
        networks: whatever it evaluates.
        device: where.

    Attributes:
        kept: what was made, if it was.
    """

    def __init__(self, networks: tuple[object, ...], device: torch.device) -> None:
        self.networks, self.device = networks, device
        self.kept: tuple[Made, ...] = ()
        self.frozen: list[object] = []

    def now(self, make: Callable[[], Made], made: Callable[[], object]) -> Made:
        """Return it, of networks and inputs as they are now.

        Args:
            make: makes it; what it made before is dropped first.
            made: returns numbers that change when static inputs are made anew.
        """
        if not self.holds(made):
            self.kept = ()
            result = make()
            self.kept = (result,)
            # What was compiled on the way counts as it is afterwards.
            self.frozen = [made(), *frozen_in(self.networks, self.device)]
        return self.kept[0]

    def holds(self, made: Callable[[], object]) -> bool:
        """Return whether it was made, of networks and inputs as they are now."""
        return bool(self.kept) and self.frozen == [made(), *frozen_in(self.networks, self.device)]


class Repeated:
    """Work over static buffers that is done again and again: recorded where that can be, else as it is.

    Args:
        graph: "off"; "step" insists on a recording; "auto" goes on without one where it cannot be made, and says so.
        device: only CUDA devices record.
        networks: as for Recorded.

    Attributes:
        recorder: makes what records, or None.
        capture_s: seconds that the last recording took.
    """

    def __init__(self, graph: str, device: torch.device, networks: tuple[object, ...]) -> None:
        self.graph, self.capture_s = graph, 0.0
        self.recorder: Callable[[], Recorder] | None = None
        if graph != "off" and device.type == "cuda":
            self.recorder = partial(CudaGraphs, device, networks)
        self.recorded = Recorded[Work | None](networks, device)

    @property
    def mode(self) -> str:
        """How it is done: "off" or "step"; "auto" before it was tried."""
        if self.recorder is None:
            return "off"
        kept = self.recorded.kept
        return self.graph if not kept else "off" if kept[0] is None else "step"

    def now(self, work: Work, reset: Work, made: Callable[[], object]) -> Work:
        """Return what does the work, recorded now if it must be.

        Args:
            work: a method that changes what outlives it where it lies, and makes the same calls whatever it finds.
            reset: a method that puts its buffers back, before each trial of it.
            made: as for Recorded.

        Raises:
            ValueError: it cannot be recorded, and ``graph`` insists on it.
        """
        if (recorder := self.recorder) is None:
            return work
        return self.recorded.now(lambda: self._record(recorder, work, reset), made) or work

    def holds(self, made: Callable[[], object]) -> bool:
        """Return whether what ``now`` returned last does the work as it is now."""
        return self.recorder is None or self.recorded.holds(made)

    def _record(self, recorder: Callable[[], Recorder], work: Work, reset: Work) -> Work | None:
        start = time.perf_counter()
        try:
            with torch.no_grad():
                return recorder().record(_unheld(reset), _unheld(work))
        except Exception as error:  # of a network, of a compiler, of torch: whatever it is, nothing was recorded
            reason = first_reason(error)
            if self.graph != "auto":
                raise ValueError(
                    f"graph = {self.graph!r}: the network cannot be captured ({reason}); use graph='off'"
                ) from error
            warnings.warn(f"no CUDA graph: the network cannot be captured ({reason})", stacklevel=2)
            return None
        finally:
            self.capture_s = time.perf_counter() - start


def _unheld(method: Work) -> Work:
    """Return a method that does not hold its object: that one holds the recording, which holds this, and ends it."""
    weak = WeakMethod(method)

    def call() -> None:
        bound = weak()
        assert bound is not None
        bound()

    return call
