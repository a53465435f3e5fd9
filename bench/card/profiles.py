"""P7: what the device does in a row: launches, how busy it is between the first and the last, the longest kernels."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import fastscore as fs
from bench.card.card import Card, Facts
from bench.card.cases import SHAPE, model

Span = tuple[float, float, str]


def spans(card: Card, work: Callable[[], object]) -> list[Span]:
    """Return (start, end, name) of every kernel that work launched, in microseconds; in a dry run of operations."""
    activities = [ProfilerActivity.CPU] if card.dry else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as found:
        work()
        card.wait()
    wanted = torch.autograd.DeviceType.CPU if card.dry else torch.autograd.DeviceType.CUDA
    events = [e for e in found.events() or () if e.device_type == wanted]
    return sorted((e.time_range.start, e.time_range.end, e.name) for e in events)


def busy(found: Iterable[Span]) -> float:
    """Return the share of the time between the first and the last during which at least one runs."""
    spans = sorted(found)
    if not spans:
        return 0.0
    first, covered, reach = spans[0][0], 0.0, spans[0][0]
    for start, end, _ in spans:
        covered += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    return covered / max(reach - first, 1e-9)


def gaps(found: Iterable[Span]) -> list[float]:
    """Return the longest waits between two kernels, in microseconds."""
    waits, reach = [], None
    for start, end, _ in sorted(found):
        if reach is not None and start > reach:
            waits.append(start - reach)
        reach = end if reach is None else max(reach, end)
    return sorted(waits, reverse=True)[:5]


def figures(found: list[Span]) -> dict[str, Any]:
    """Return how busy the device is, and what takes longest."""
    total: Counter[str] = Counter()
    for start, end, name in found:
        total[name[:60]] += end - start
    count = Counter(name[:60] for *_, name in found)
    top = {name: [count[name], round(us, 1)] for name, us in total.most_common(15)}
    return {"kernels": len(found), "busy": busy(found), "gaps_us": gaps(found), "count_and_us": top}


def rows(card: Card, solver: Any, **settings: Any) -> Facts:
    """Return launches a row beside the network: what more steps add, around a network that launches nothing."""
    constant = torch.full((8, *SHAPE), 0.1, device=card.device)  # enough for guidance in one batch, too
    of = fs.ScoreModel(
        lambda u, t, cond: constant[: len(u)],
        SHAPE,
        fs.EDM(),
        fs.Parametrization("edm", "log_sigma/4"),
        classes=4,
        null=4,
    )
    lengths, counts, found = [], [], []
    for steps in card.pick((20, 40), (3, 4)):
        made: Any = card.sampler(of, solver=solver, grid=fs.karras(steps), batch=4, **settings)
        made.run(range(4), labels=1)
        found = spans(card, made.engine.loop.run)
        counts.append(len(found))
        lengths.append(len(made.plan.rows))
    return {"launches_a_row": (counts[1] - counts[0]) / (lengths[1] - lengths[0]), "rows": lengths[1], **figures(found)}


def whole(card: Card, **settings: Any) -> Facts:
    """Return what a run launches whose rows are not known before."""
    made: Any = card.sampler(model(card.device), batch=4, **settings)
    made.run(range(4))
    found = spans(card, lambda: made.run(range(4)))
    cost = {} if made.plan is not None else {"cost": made.cost.summary()}
    return {**figures(found), **cost}


def run(card: Card) -> None:
    """Profile rows of each kind, then ticks and sweeps."""
    warnings.simplefilter("ignore", UserWarning)  # nobody looks at the samples
    pc = fs.PredictorCorrector(fs.ReverseDiffusion(), fs.Langevin(norm="batch"))
    loose, span = card.pick(1e-2, 0.1), fs.Span(card.pick(1e-3, 0.05))
    items = {
        "ODE row": partial(rows, card, fs.DPMpp2M()),
        "SDE row": partial(rows, card, fs.DDIM(eta=1.0)),
        "PC row": partial(rows, card, pc),
        "CFG row": partial(rows, card, fs.DPMpp2M(), guidance=fs.Guidance(2.0)),
        "Dopri5": partial(whole, card, solver=fs.Dopri5(rtol=loose, atol=loose), grid=span),
        "Picard": partial(whole, card, solver=fs.DDIM(), grid=fs.karras(card.pick(50, 4)),
                          parallel=fs.Picard(window=card.pick(50, 4))),
        "GGF": partial(whole, card, solver=fs.GottaGoFast(rtol=loose, atol=loose), grid=span),
    }  # fmt: skip
    few = ("ODE row", "CFG row", "Picard")  # the reference's noise is hundreds of operations a row
    card.do_all({name: work for name, work in items.items() if not card.dry or name in few})
