"""Turns: one run at a time, each in surroundings of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import Lock, current_thread
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.nn.parameter import is_lazy

from fastscore.errors import unknown
from fastscore.execution import GRAPHS, Execution
from fastscore.network.jit import Regional
from fastscore.network.prepare import SMALL
from fastscore.network.prepared import Prepared, tf32_of
from fastscore.network.surroundings import behind, evaluating, undisturbed
from fastscore.plan import STARTS

if TYPE_CHECKING:
    from typing import Concatenate

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

Item = TypeVar("Item")
Result = TypeVar("Result")


class Turn:
    """One run at a time, in surroundings of its own: see surroundings.py.

    Args:
        networks: networks, guides, and modules that they run without our seeing it.
        execution: whose place and state it computes on; the CPU's float32 if left out.
        gradients: whether the caller's grad mode counts. Otherwise none are recorded but where a guide asks for them.
    """

    def __init__(self, *networks: object, execution: Execution | None = None, gradients: bool = False) -> None:
        self.networks, self.gradients, self.warned = networks, gradients, False
        self.compiled = [net for net in networks if isinstance(net, Prepared | Regional)]
        self.execution, self.threads, self.lock = execution or Execution(), torch.get_num_threads(), Lock()
        self.holder = ""

    @property
    def busy(self) -> bool:
        """Whether a run is going on."""
        return self.lock.locked()

    def take(self) -> None:
        """Begin a run.

        Raises:
            RuntimeError: one is going on.
        """
        if not self.lock.acquire(blocking=False):
            raise RuntimeError(
                f"this sampler is in the middle of a run, in thread {self.holder!r}; use another one inside a callback "
                "or a thread (copy.deepcopy(sampler), or one made around the same network), and close() a stream that "
                "is not read to its end"
            )
        self.holder = current_thread().name

    def __enter__(self) -> None:
        self.entered = self.part()
        self.entered.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.entered.__exit__(*error)

    @contextmanager
    def part(self, begins: bool = True) -> Generator[None]:
        """Take the turn for a run, or for a part of one; ``begins`` as for ``surroundings``."""
        self.take()
        try:
            with self.surroundings(begins):
                yield
        finally:
            self.lock.release()

    @contextmanager
    def surroundings(self, begins: bool = True) -> Generator[None]:
        """Compute as a run does.

        Args:
            begins: whether a run begins: what was compiled of a network that has changed since is made again first,
                which on a GPU waits for all that it has to do.
        """
        run = self.execution
        with (
            undisturbed(run.dtype, run.place, self.threads, self.gradients, tf32_of(self.compiled)),
            evaluating(*self.networks),
            ExitStack() as held,
        ):
            for net in self.compiled:
                held.enter_context(net.steady(begins))
            yield

    def steps(self, work: Iterator[Item]) -> Iterator[Item]:
        """Yield what ``work`` yields: each step of it runs in the turn, and the caller gets its own settings back."""
        self.take()
        begins = True
        try:
            while True:
                with self.surroundings(begins):
                    item = next(work, None)
                if item is None:
                    return
                begins = False
                yield item
        finally:
            self.lock.release()

    def look(self, n: int) -> None:
        """Warn, once, of a run of ``n`` samples whose micro-batch is mostly padding, where the network is not small."""
        batch = self.execution.batch
        if self.warned or not 0 < 2 * n < batch or any(isinstance(net, Prepared) for net in self.networks):
            return  # or a network that computes what it must
        weights = [p for m in behind(*self.networks) for p in m.parameters(recurse=False)]
        if sum(p.numel() for p in weights if not is_lazy(p)) < SMALL:
            return
        self.warned = True
        warnings.warn(
            f"batch = {batch} for {n} samples: the network computes {batch - n} lines of padding; batch={n} is faster "
            "(samples then differ in their last digits, as between any two values of batch)",
            stacklevel=5,
        )


def in_turn(method: Callable[Concatenate[Any, P], Result]) -> Callable[Concatenate[Any, P], Result]:
    """Let a method of a facade run in its ``turn``, all that it makes and computes included."""

    @wraps(method)
    def within(self: Any, *args: P.args, **kwargs: P.kwargs) -> Result:
        keep_up(self, *self.model.networks)
        with self.turn:
            return method(self, *args, **kwargs)

    return within


def keep_up(facade: Any, *networks: object) -> None:
    """Make a facade anew, of its model and settings, if a network has been moved or cast since it was made."""
    if (facade.execution, facade.net_dtype) != facade.settings["execution"].around(*networks):
        facade.release()
        facade.__init__(facade.model, **facade.settings)


def made(kind: Callable[..., Result], model: object, settings: dict[str, Any]) -> Result:
    """Make a facade of its model and settings: how one is copied and sent, since what it has made stays behind."""
    return kind(model, **settings)


def check_together(
    execution: Execution, parallel: bool, guided: bool, start: str, adaptive: bool, second: bool
) -> None:
    """Raise ValueError for settings that do not go together, whatever the model."""
    if start not in STARTS:
        raise unknown("start", start, STARTS)
    if adaptive and parallel:
        raise ValueError("parallel sweeps over rows, which an adaptive solver has not; leave it out")
    if execution.guided == "batched":
        for at, why in (
            (adaptive, "an adaptive solver evaluates one output after the other"),
            (parallel, "Picard's sweeps evaluate one output after the other"),
            (second, "a second model is a network of its own"),
        ):
            if at:
                raise ValueError(f"guided = 'batched': {why}; use guided='auto'")
    if execution.graph not in GRAPHS:
        return
    graph = f"graph = {execution.graph!r}"
    if execution.graph == "loop" and (adaptive or parallel):
        what = "an adaptive solver takes as many steps" if adaptive else "Picard takes as many sweeps"
        raise ValueError(f"{graph} captures all rows at once, and {what} as it needs; use graph='auto' or 'step'")
    if guided:
        raise ValueError(f"{graph}: a guide is Python that may differentiate; use graph='auto' or 'off'")
