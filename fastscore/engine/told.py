"""What a caller hears of a run: samples and states in the units of the data, and a log if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastscore.engine.adaptive.run import AdaptiveBatches
from fastscore.engine.batches import Batches, Callback, Chosen
from fastscore.engine.loop import Step
from fastscore.engine.request import Request
from fastscore.engine.units import outside, seen
from fastscore.model.score import ScoreModel
from fastscore.output.log import Journal, Log, Logger
from fastscore.output.progress import Told

if TYPE_CHECKING:
    from fastscore.engine.picard import Parallel

Hears = Logger | Log | Journal


def streamed(
    engine: Batches | Parallel | AdaptiveBatches,
    request: Request,
    model: ScoreModel,
    callback: Callback | None = None,
    progress: Told = False,
    log: Hears | None = None,
    at_once: bool = False,
) -> Iterator[tuple[Any, Tensor]]:
    """Return the stream of an engine in the units of the data: (positions in the request, samples).

    Args:
        callback: is called with states and estimates in those units, too.
        log: is told how far the run is, its estimates after chosen rows and an adaptive solver's steps. All of that is
            read where the engine looks up anyway, but for the estimates, which are copied; without it nothing is.
        at_once: whether no sample is used before all are there; see micro_batches.

    Raises:
        ValueError: no logger, or rows that the plan has not.
    """
    journal, shown = Journal.of(log), seen(callback, model.transform)
    if journal is None:
        if isinstance(engine, Batches):
            return outside(engine.stream(request, shown, progress, at_once and not progress), model.transform)
        return outside(engine.stream(request, shown, progress), model.transform)
    chosen = _rows(engine, model, journal) if isinstance(engine, Batches) else None
    return _logged(engine, request, model, _both(shown, chosen), progress, journal)


def _logged(
    engine: Batches | Parallel | AdaptiveBatches,
    request: Request,
    model: ScoreModel,
    callback: Callback | None,
    progress: Told,
    journal: Journal,
) -> Iterator[tuple[Any, Tensor]]:
    if isinstance(engine, AdaptiveBatches):
        journal.details = lambda: _steps(engine)
    elif isinstance(engine, Batches):
        journal.details = lambda: {"sample/evaluations": engine.loop.plan.nfe}
    with journal.following(progress, len(request)) as reach:
        if isinstance(engine, AdaptiveBatches):
            reach = _places(engine, request, model, reach, journal)
        yield from outside(engine.stream(request, callback, reach), model.transform)


def _rows(engine: Batches, model: ScoreModel, journal: Journal) -> Chosen | None:
    """Return what shows the estimates after the chosen rows of the first micro-batch, each once in a run."""
    rows = engine.loop.plan.rows
    chosen = journal.log.chosen([k for k, row in enumerate(rows) if row.evaluate], len(rows))
    if journal.pictured or not chosen:
        return None
    journal.pictured = True

    def show(step: Step) -> None:
        chosen.discard(step.row)
        if step.x0 is not None:
            _show(step.x0, model, {"sample/row": step.row, "sample/t": step.t}, journal)

    return Chosen(chosen, show)


def _both(callback: Callback | None, chosen: Chosen | None) -> Callback | None:
    """Return the caller's callback, which sees every row, with what sees the chosen ones; or the one that there is."""
    if callback is None or chosen is None:
        return callback or chosen

    def both(step: Step) -> None:
        callback(step)
        if step.row in chosen.rows:
            chosen(step)

    return both


def _show(x0: Tensor, model: ScoreModel, figures: dict[str, Any], journal: Journal) -> None:
    images = len(model.shape) == 3 and model.decoder is None and not model.info.get("latents")
    journal.show(x0 if model.transform is None else model.transform(x0), images, figures)


@torch.no_grad()
def _steps(engine: AdaptiveBatches) -> dict[str, Any]:
    """Return figures of an adaptive solver: sizes of the steps that are under way, as shares of the way, and costs."""
    lanes, figures = engine.lanes, dict[str, Any]()
    sizes = (lanes.h / abs(lanes.end - lanes.start))[lanes.live].clamp(max=1.0).cpu()
    if len(sizes):
        for name, value in (("min", sizes.min()), ("median", sizes.median()), ("max", sizes.max())):
            figures[f"sample/step_share_{name}"] = float(value)
    done = lanes.cost.nfe[lanes.cost.nfe > 0].double()
    if len(done):
        figures |= {"sample/evaluations": float(done.mean()), "sample/rejected_share": lanes.cost.rejected_share}
    return figures


def _places(engine: AdaptiveBatches, request: Request, model: ScoreModel, reach: Told, journal: Journal) -> Told:
    """Return what also shows, at evenly spaced places of the way, the estimates of the samples that came first."""
    lanes, rows, shown = engine.lanes, journal.log.rows, 0
    places = rows if isinstance(rows, int) else len(rows)
    first = request.ids[: lanes.lanes]  # the sample k enters lane k
    if journal.pictured or not places:
        return reach
    journal.pictured = True

    def look(done: float) -> None:
        nonlocal shown
        if callable(reach):
            reach(done)
        if shown >= places:
            return
        held = (lanes.live & (lanes.stage > 0))[: len(first)] & (lanes.id[: len(first)] == first)
        at = held.nonzero()[:, 0]
        way = ((lanes.tau - lanes.start) / (lanes.end - lanes.start))[at]
        if len(at) and float(way.mean()) * (places + 1) >= shown + 1:
            shown = int(float(way.mean()) * (places + 1))
            _show(engine.estimates(at), model, {"sample/way_share": float(way.mean())}, journal)

    return look
