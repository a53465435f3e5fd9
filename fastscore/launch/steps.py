"""A run as a step of somebody else's pipeline: datatrove, or whatever calls (data, rank, world_size)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from fastscore.output.store.job import Job
    from fastscore.output.store.place import Place

Data = TypeVar("Data")


@dataclass(frozen=True)
class Step:
    """Draws part rank / world_size of a run when it is called: what `fastscore sample --shard RANK/WORLD_SIZE` does.

    It can be pickled, and called again: what is there is not drawn twice. Shards do not depend on world_size, but
    datatrove's marks of completed tasks do: give another number of tasks another logging_dir.

    Args:
        opened: run -> (job, place); a function of a module, so that it can be pickled. `fastscore.cli.again.opened`
            is one for runs that `fastscore sample ... --manifest-only` began.
        run: folder or URL of the run.
    """

    opened: Callable[[str], tuple[Job, Place]]
    run: str

    def __call__(self, data: Data = None, rank: int = 0, world_size: int = 1) -> Data:
        """Draw the part; return the data, for the steps after this one.

        Raises:
            ValueError: there is no such part.
            Stopped, NonFiniteError, SelfCheckError, OSError: as for ``share``.
        """
        from fastscore.output.store.share import share

        if not 0 <= rank < world_size:
            raise ValueError(f"rank = {rank} must be in 0 .. {world_size - 1}, the world size less one")
        job, place = self.opened(self.run)
        share(job, place, (rank, world_size))
        return data
