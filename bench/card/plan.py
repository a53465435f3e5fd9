"""The phases of the first run on a card, ordered by what they tell; imports nothing that a broken machine lacks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """One process of the run.

    Attributes:
        name: as on the command line.
        module: whose ``run(card)`` it calls.
        seconds: its share of the budget, in the seconds of a run of 540.
        answers: the question.
        beside: it runs beside the phases after it, which are not timed, and ends before the first that is.
        timed: it wants the device to itself.
    """

    name: str
    module: str
    seconds: float
    answers: str
    beside: bool = False
    timed: bool = False


PHASES = (
    Phase("P0", "bench.card.env", 10, "what machine this is, and what its memory and its products reach", timed=True),
    Phase("AHEAD", "bench.card.ahead", 0, "how long networks compile; P5 finds them compiled", beside=True),
    Phase("P1", "bench.card.bits", 25, "whether every kernel variant gives the CPU's bits"),
    Phase("P2", "bench.card.captures", 60, "whether graphs give the plain loop's bits and survive what services do"),
    Phase("P3", "bench.card.pytests", 60, "whether the tests pass"),
    Phase("P4", "bench.card.rows", 40, "how near each kernel comes to a copy", timed=True),
    Phase("P5", "bench.card.networks", 150, "which way to run a network is fastest, and its error", timed=True),
    Phase("P6", "bench.card.whole", 60, "samples a second against hand-written loops", timed=True),
    Phase("P7", "bench.card.profiles", 30, "launches a row, and where the device waits", timed=True),
    Phase("P8", "bench.card.energy", 20, "joules a sample", timed=True),
    Phase("P9", "bench.card.spare", 40, "whether NVIDIA's tools find anything"),
)
