"""P2: what a graph must give (the plain loop's bits, and the CPU's) and what it must survive, one process an item."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastscore as fs
from bench.card.card import Card, Facts
from bench.card.isolated import each

SHAPE = (3, 16, 16)
STEPS = 6
MODES = ("step", "loop", "auto")


class Elementwise(nn.Module):
    """A network of operations that every device rounds alike; it has weights, so that it lives somewhere."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, u: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return u / (1 + u^2), shifted by the condition."""
        y = self.factor * u / (1.0 + u * u)
        if cond is None:
            return y
        shift = cond.to(u.dtype) * 0.125
        return y + (shift[:, None, None, None] if shift.ndim == 1 else shift)


class Mixing(nn.Module):
    """A network with the libraries' convolution and product, and the workspaces that they keep a stream."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.linear = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(16, 16)

    def forward(self, u: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return a mixture of pixels and channels."""
        return self.linear(torch.tanh(self.conv(u)))


class Refuses(nn.Module):
    """A network that reads a value on the host, which no capture allows."""

    def forward(self, u: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return u or -u."""
        return u if float(t[0]) > -1e9 else -u


def model(device: torch.device, net: nn.Module | None = None, dtype: torch.dtype | None = None, **more: Any) -> Any:
    """Return the score model of a network, on a device."""
    net = (Elementwise() if net is None else net).to(device)
    net = net if dtype is None else net.to(dtype)
    return fs.ScoreModel(net, SHAPE, fs.EDM(), fs.Parametrization("edm", "log_sigma/4"), **more)


@dataclass(frozen=True)
class Case:
    """Settings of a sampler, and what a run of it is given."""

    solver: Any = field(default_factory=fs.DPMpp2M)
    model: Callable[[torch.device], fs.ScoreModel] = model
    settings: Callable[[torch.device], dict[str, Any]] = lambda device: {}
    fields: Callable[[], dict[str, Any]] = dict


def cases() -> dict[str, Case]:
    """Return what is captured in every mode."""
    classes = partial(model, classes=4, null=4)
    labels: Callable[[], dict[str, Any]] = lambda: {"labels": 1}  # noqa: E731
    ramp = torch.linspace(-1.0, 1.0, 3 * 16 * 16).reshape(SHAPE)
    pc = fs.PredictorCorrector(fs.ReverseDiffusion(), fs.Langevin())

    def second(device: torch.device) -> dict[str, Any]:
        return {"guidance": fs.Guidance(2.0, model=model(device, Elementwise(0.5)))}

    return {
        "2M": Case(),
        "Heun": Case(fs.Heun()),
        "PC": Case(pc),
        "CFG": Case(model=classes, settings=lambda d: {"guidance": fs.Guidance(2.0)}, fields=labels),
        "interval CFG": Case(
            model=classes, settings=lambda d: {"guidance": fs.Guidance(2.0, interval=(0.2, 5.0))}, fields=labels
        ),
        "known": Case(fields=lambda: {"known": fs.Known(ramp, ramp > 0.2)}),
        "cond": Case(model=partial(model, cond_shape=SHAPE), fields=lambda: {"cond": ramp}),
        "bf16 u": Case(model=partial(model, dtype=torch.bfloat16)),
        "second model": Case(settings=second),
    }


def make(card: Card, case: Case, mode: str, device: torch.device | None = None) -> Any:
    """Return a sampler of a case; on another device than the card's, the plain one."""
    at, batch = device or card.device, 4
    settings = {"solver": case.solver, "grid": fs.karras(STEPS), "batch": batch, **case.settings(at)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # per-sample norms: the same on both sides
        if device is not None:
            return fs.Sampler(case.model(at), **settings)
        return card.sampler(case.model(at), mode, **settings)


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


def mixing() -> Case:
    """Return the case of a network that libraries compute."""
    return Case(model=lambda device: model(device, Mixing()))


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
