"""What training tells a logger."""

from __future__ import annotations

import time

from torch import Tensor

from fastscore.output.log import Journal, Log, Logger
from fastscore.training.checkpoint import State
from fastscore.training.settings import TrainConfig


class TrainLog:
    """The entries of one training run: losses are added up where they are, and read when an entry is due."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.total, self.steps = journal, 0.0, 0
        self.begun = self.since = time.perf_counter()
        self.seen: int | None = None  # at the last entry

    @classmethod
    def of(cls, log: Logger | Log | None) -> TrainLog | None:
        """Return what tells a logger, None if there is none; ValueError if it is no logger."""
        return None if log is None else cls(Journal(Log.of(log)))

    def step(self, seen: int, loss: Tensor, config: TrainConfig, state: State) -> None:
        """Take notice of a step, after which ``seen`` examples were seen; its loss is a number on its device."""
        self.total, self.steps = loss + self.total, self.steps + 1
        self.seen = seen - config.batch if self.seen is None else self.seen
        if not self.journal.due and seen < config.images:
            return
        now, decay = time.perf_counter(), state.decay
        entry = {
            "train/loss": float(self.total / self.steps),
            "train/lr": state.optimizer.param_groups[0]["lr"],
            "train/examples": seen,
            "train/examples_per_s": (seen - self.seen) / max(now - self.since, 1e-9),
            "train/elapsed_s": now - self.begun,
            **({} if decay is None else {"train/ema_decay": decay}),
        }
        self.journal.tell(lambda: entry, step=seen)
        self.total, self.steps, self.seen, self.since = 0.0, 0, seen, now
