"""P2: what a graph must give (the plain loop's bits, and the CPU's) and what it must survive, one process an item."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from bench.card.card import Card, Facts
from bench.card.cases import Case, Elementwise, Refuses, cases, make, mixing, model
from bench.card.isolated import each

MODES = ("step", "loop", "auto")


def matrix(card: Card, case: Case) -> Facts:
    """Compare every mode with the plain loop and with the CPU, twice each and from other seeds."""
    fields = case.fields()
    others = {"plain loop": make(card, case, "off"), "CPU": make(card, case, "off", torch.device("cpu"))}
    expected = {
        (name, seed): other.run(range(4), seed, **fields).cpu() for name, other in others.items() for seed in (0, 1)
    }
    facts: dict[str, Any] = {}
    for mode in MODES:
        sampler = make(card, case, mode)
        for seed in (0, 1, 0):
            x = sampler.run(range(4), seed, **fields).cpu()
            for name in others:
                same = torch.equal(x, expected[name, seed]) and bool(torch.isfinite(x).all())
                facts[f"{mode} = {name}"] = facts.get(f"{mode} = {name}", True) and same
        sampler.release()
    facts["seeds differ"] = not torch.equal(expected["CPU", 0], expected["CPU", 1])
    return {"ok": all(facts.values()), **facts}


def hazard(card: Card, disturb: Callable[[Any], object], mode: str = "step") -> Facts:
    """Record, disturb, replay: the bits must stay."""
    sampler = make(card, mixing(), mode)
    expected = sampler.run(range(4)).cpu()
    disturb(sampler)
    after = sampler.run(range(4)).cpu()
    return {"ok": torch.equal(after, expected) and bool(torch.isfinite(after).all())}


def empty_cache(card: Card) -> Facts:
    """Give unused memory back between replays, and fill what is free with NaN."""

    def disturb(sampler: Any) -> None:
        torch.cuda.empty_cache()
        poison = [torch.full((2 ** card.pick(24, 10),), torch.nan, device=card.device) for _ in range(8)]
        card.wait()
        del poison

    return hazard(card, disturb)


def another(card: Card) -> Facts:
    """Make, run and drop other samplers: as many as there are streams to share."""

    def disturb(sampler: Any) -> None:
        for k in range(card.pick(34, 2)):
            make(card, mixing(), ("step", "loop")[k % 2]).run(range(4))
            gc.collect()

    return hazard(card, disturb)


def thread(card: Card) -> Facts:
    """Replay what this thread recorded in another one, and record there what this one replays."""
    found: dict[str, Any] = {}
    sampler, case = make(card, Case(), "step"), Case()
    expected = sampler.run(range(4)).cpu()

    def elsewhere() -> None:
        try:
            found["replayed there"] = torch.equal(sampler.run(range(4)).cpu(), expected)
            found["sampler"] = make(card, case, "loop")
            found["recorded there"] = torch.equal(found["sampler"].run(range(4)).cpu(), expected)
        except Exception as error:
            found["error"] = repr(error)

    worker = threading.Thread(target=elsewhere)
    worker.start()
    worker.join()
    other = found.pop("sampler", None)
    found["recorded there, replayed here"] = other is not None and torch.equal(other.run(range(4)).cpu(), expected)
    return {"ok": "error" not in found and all(found.values()), **found}


def inference(card: Card) -> Facts:
    """Make and run under inference mode, then outside, then under it again."""
    sampler = None
    results = []
    for mode in (torch.inference_mode, nullcontext, torch.inference_mode):
        with mode():
            sampler = sampler or make(card, Case(), "step")
            results.append(sampler.run(range(4)).cpu().clone())
    return {"ok": all(torch.equal(results[0], x) for x in results[1:])}


def uncapturable(card: Card) -> Facts:
    """Ask for graphs around a network that none can hold; then stream, device and allocator must be as before."""
    stream = None if card.dry else torch.cuda.current_stream()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        refused = make(card, Case(model=lambda d: model(d, Refuses())), "off" if card.dry else "auto")
        refused.run(range(4))
    same = stream is None or torch.cuda.current_stream() == stream
    after = matrix(card, Case())
    warned = [str(w.message)[:200] for w in told]
    return {"ok": same and after["ok"], "stream restored": same, "then": after, "warned": warned}


def moved(card: Card) -> Facts:
    """Replace the memory of a captured network's weights; a replay must not read what was freed."""
    net = Elementwise().to(card.device)
    case = Case(model=lambda d: model(d, net))
    sampler = make(card, case, "step")
    before = sampler.run(range(4)).cpu()
    home = net.factor.device
    net.to("cpu")
    net.to(home)
    net.load_state_dict({"factor": torch.tensor(0.5, device=home)}, assign=True)  # elsewhere, and another value
    poison = [torch.full((1,), torch.nan, device=home) for _ in range(1000)]
    expected = make(card, case, "off").run(range(4)).cpu()
    if card.dry:
        sampler.graphed.clear()  # a tape has no owner that watches weights
    after = sampler.run(range(4)).cpu()
    del poison
    return {"ok": torch.equal(after, expected) and not torch.equal(after, before)}


def collector(card: Card) -> Facts:
    """Leave garbage in cycles, with tensors in it, and collect all the time while graphs are recorded."""
    threshold = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(50):
            ring: list[Any] = [torch.zeros(8, device=card.device)]
            ring.append(ring)
        sampler = make(card, Case(), "loop")
        x = sampler.run(range(4)).cpu()
    finally:
        gc.set_threshold(*threshold)
    return {"ok": torch.equal(x, make(card, Case(), "off").run(range(4)).cpu())}


def memory(card: Card) -> Facts:
    """Make and drop samplers: what is held afterwards must not grow with their number."""
    if card.dry:
        make(card, Case(), "step").run(range(4))
        return {"skipped": "no device memory"}

    def held(count: int) -> float:
        for _ in range(count):
            make(card, mixing(), "step").run(range(4))
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(card.device)
        return (total - free) / 2**20

    counts = card.pick((4, 40), (1, 2))
    few, many = map(held, counts)
    allocated = torch.cuda.memory_allocated(card.device) / 2**20
    return {"ok": many - few < 64.0, "samplers": counts, "mib": (few, many), "allocated_mib": allocated}


def syncs(card: Card) -> Facts:
    """Count how often the host waits in a run of several micro-batches."""
    sampler = make(card, Case(), "step")
    batches = card.pick(25, 1)
    sampler.run(range(4))
    if card.dry:
        return {"waits": 0, "micro_batches": batches}
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        sampler.run(range(4 * batches))
    torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchroniz" in str(w.message) for w in told)
    return {"waits": waits, "micro_batches": batches}


def run(card: Card) -> None:
    """Do all of it; the likeliest to be fatal last."""
    items: dict[str, Callable[[], Facts]] = {name: partial(matrix, card, case) for name, case in cases().items()}
    items |= {
        "replays after empty_cache": partial(empty_cache, card),
        "another sampler made and dropped": partial(another, card),
        "a second thread": partial(thread, card),
        "inference mode": partial(inference, card),
        "garbage collection": partial(collector, card),
        "host waits": partial(syncs, card),
        "memory of 40 samplers": partial(memory, card),
        "weights moved after a recording": partial(moved, card),
        "a network that cannot be captured": partial(uncapturable, card),
    }
    each(card, __name__, items, at_once=card.pick(6, 1), limit=card.pick(40.0, 30.0), size=card.pick(1, 9))
