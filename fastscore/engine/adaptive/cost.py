"""The cost of a run of an adaptive solver."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """The cost of a run, in evaluations and steps.

    Attributes:
        nfe: evaluations of each sample, int64 [n].
        steps, rejected: attempted steps of each sample, and those that were rejected; int64 [n].
        ticks: evaluations of the network on all lanes.
        lanes: how many there are.
    """

    nfe: Tensor
    steps: Tensor
    rejected: Tensor
    ticks: int
    lanes: int

    @classmethod
    def of(cls, counts: Tensor, ticks: int, lanes: int) -> Cost:
        """Return the cost of counted evaluations, steps and rejections, [3, n]."""
        nfe, steps, rejected = counts
        return cls(nfe, steps, rejected, ticks, lanes)

    @property
    def utilisation(self) -> float:
        """Share of the lanes' evaluations that served a sample; 1 for an empty run."""
        return float(self.nfe.sum()) / (self.ticks * self.lanes) if self.ticks else 1.0

    @property
    def rejected_share(self) -> float:
        """Rejected steps over attempted ones."""
        return float(self.rejected.sum()) / max(1, int(self.steps.sum()))

    @property
    def without_refill(self) -> int:
        """Ticks that batches would take if each waited for its slowest sample: the sum of the largest nfe of each."""
        return sum(int(part.max()) for part in self.nfe.split(self.lanes)) if len(self.nfe) else 0

    def __str__(self) -> str:
        mean = float(self.nfe.double().mean()) if len(self.nfe) else 0.0
        return (
            f"{mean:.1f} evaluations each on average, {self.rejected_share:.1%} of steps rejected, "
            f"{self.utilisation:.1%} of the network's work used"
        )

    def summary(self) -> dict[str, float]:
        """Return the figures of a report; "samples" is how many these are of: in shards, those of the last one here."""
        nfe = self.nfe.double()
        spread = {"mean": float(nfe.mean()), "min": float(nfe.min()), "max": float(nfe.max())} if len(nfe) else {}
        return {
            "samples": len(nfe),
            **{f"nfe_{name}": round(value, 2) for name, value in spread.items()},
            "rejected_share": round(self.rejected_share, 4),
            "utilisation": round(self.utilisation, 4),
            "network_calls": self.ticks,
            "network_calls_without_refill": self.without_refill,
        }
