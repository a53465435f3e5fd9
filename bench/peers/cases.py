"""Side by side with other samplers: same network, same weights, same machine, same solver and grid.

Claim: at equal evaluations fastscore is at least as fast as every peer, and what it adds outside the
network is at most a third of theirs. Three cases a solver of a peer: ``peers``, around the bundled network;
``outside``, around a model that returns a constant; ``points``, on a two-dimensional mixture with its exact
score. Every case first checks that both give the same samples from the same normals.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import fastscore as fs
from bench.common import OURS, Case, Check, Setting, Work
from bench.engine.sampler import fingerprint, score_model
from bench.peers import LIBRARIES, Entry, Model, load_entries
from bench.peers.models import SEED, Draws, edm_model, mixture_model
from fastscore.model.analytic import mixture
from fastscore.model.analytic import score_model as exact

STUB = (64, 20)  # batch and evaluations around the constant
BATCH, NFE = 16, 8  # around the network, which takes nearly all the time at any batch
CHUNK, POINTS_NFE = 8192, 10
PEER = "peer"


@dataclass(frozen=True)
class Mode:
    """One mode of fastscore around the network: the network's path, and its tolerance against eager.

    Attributes:
        name: of the mode.
        network: the execution's network path.
        compiles: whether it needs a compiler; it is left out where there is none.
        tolerance: on the difference from eager, of the largest |x|.
    """

    name: str
    network: str = "own"
    compiles: bool = True
    tolerance: float = 1e-3


# Another network path is one more line. "compiled" takes the network that the peers take, compiled once for all.
MODES = (
    Mode("eager", compiles=False),
    Mode("compiled"),
    Mode("network auto", "auto", tolerance=0.05),
)
TOLD = ("own", "compile", *(mode.network for mode in MODES))


def cases(setting: Setting) -> Iterator[Case]:
    """Yield the cases of every installed peer."""
    problem = Problem(setting)
    for adapter in LIBRARIES:
        entries = load_entries(adapter, 4)
        if isinstance(entries, str):
            yield missing_peer(adapter, entries)
            continue
        makers: list[tuple[str, int, Callable[[Entry], Case]]] = [
            ("outside", STUB[1], lambda entry: outside(setting, entry, problem.net.shape)),
            ("peers", NFE, lambda entry: around(problem, entry)),
            ("points", POINTS_NFE, lambda entry: points(setting, entry)),
        ]
        for bench, steps, make in makers:
            for entry in load_entries(adapter, 4 if setting.quick else steps):
                if setting.match in f"{bench}: {entry.library}, {entry.name}":
                    yield make(entry)


def missing_peer(adapter: str, reason: str) -> Case:
    """Return a case that only says why a peer is missing."""
    return Case(
        "peers", LIBRARIES[adapter][0] or adapter, {}, [], lambda: [], (0, "sample"), skipped={PEER: reason}, costed=()
    )


def same_samples(
    name: str, ours: Tensor, entry: Entry, model: Model, like: Tensor, tolerance: float | None = None
) -> Check:
    """Compare fastscore's samples with the peer's from the same normals."""
    draws = Draws(len(like), like.device)
    expected = entry.run(model, draws(like), draws)
    error = (ours - expected).abs().max() / expected.abs().max()
    return Check(f"{name} equals {entry.library}", float(error), entry.tolerance if tolerance is None else tolerance)


def sampler(model: fs.ScoreModel, entry: Entry, execution: fs.Execution) -> fs.Sampler:
    """Return fastscore's sampler for what an entry does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Langevin's norms in two dimensions: the same in both
        return fs.Sampler(model, schedule=entry.schedule, solver=entry.solver, grid=entry.grid, execution=execution)


def peer_run(entry: Entry, model: Model, like: Tensor, chunk: int | None = None) -> Callable[[], object]:
    """Return the peer's run on its own noise, at once or in chunks."""

    @torch.no_grad()
    def work() -> object:
        return [entry.run(model, torch.randn_like(part), None) for part in like.split(chunk or len(like))]

    return work


def outside(setting: Setting, entry: Entry, shape: tuple[int, ...]) -> Case:
    """Return the case of the loop alone: the model is a constant."""
    batch = 4 if setting.quick else STUB[0]
    like = torch.empty((batch, *shape), device=setting.device)
    constant = torch.full_like(like, 0.1)
    net = fs.ScoreModel(lambda u, t, cond: constant, shape, entry.schedule, fs.Parametrization(entry.predicts))
    ours = sampler(net, entry, setting.execution(batch))

    def stub(x: Tensor, sigma: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        return constant

    steps = len(entry.grid(entry.schedule)) - 1
    variants: dict[str, Work] = {OURS: lambda: ours.run(range(batch), SEED), PEER: peer_run(entry, stub, like)}

    def derive(seconds: dict[str, float]) -> dict[str, Any]:
        return {"ms_per_step": {name: 1000.0 * value / steps for name, value in seconds.items()}}

    shape_name = "x".join(map(str, like.shape))
    facts = {"library": entry.library, "solver": entry.name, "steps": steps, "nfe": ours.plan.nfe, "shape": shape_name}
    facts |= {"backend": ours.ops.name, "sampler": ours.record()}
    return Case(
        "outside", f"{entry.library}, {entry.name}, {shape_name}", variants, [(OURS, PEER)],
        # A constant removes no noise, so that diffusers' Heun loses digits where x is large and sigma small.
        lambda: [same_samples("around a constant: fastscore", ours.run(range(batch), SEED), entry, stub, like, 1e-3)],
        (batch, "sample"), facts=facts, derive=derive, costed=(),
    )  # fmt: skip


class Problem:
    """The bundled network, eager and compiled; each is compiled once for everybody."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.batch = setting, 4 if setting.quick else setting.batch or BATCH
        self.net, self.name = score_model(setting.device)
        self.labels = torch.arange(self.batch, device=setting.device) % self.net.classes if self.net.classes else None
        self.like = torch.empty((self.batch, *self.net.shape), device=setting.device)

    @cached_property
    def nets(self) -> dict[str, Any]:
        """The network by name."""
        torch.compiler.reset()
        nets = {"eager": self.net.net}
        return nets if self.setting.no_compile else nets | {"compiled": torch.compile(self.net.net, dynamic=False)}

    def model(self, net: str, entry: Entry, n: int | None = None) -> Model:
        """Return what the peer calls, for the first n samples."""
        labels = None if self.labels is None else self.labels[:n]
        return edm_model(self.nets[net], labels, self.net.parametrization.sigma_data, entry.predicts)


def around(problem: Problem, entry: Entry) -> Case:
    """Return the case around the network."""
    setting, batch, labels = problem.setting, problem.batch, problem.labels
    extra = [Mode(f"network {name}", name, tolerance=0.05) for name in setting.networks if name not in TOLD]
    modes = [mode for mode in (*MODES, *extra) if not (mode.compiles and setting.no_compile)]

    def ours(mode: Mode, size: int = batch) -> fs.Sampler:
        net = problem.nets["compiled" if mode.name == "compiled" else "eager"]
        return sampler(replace(problem.net, net=net), entry, setting.execution(size, network=mode.network))

    samplers = {mode.name: ours(mode) for mode in modes}

    def run(mode: str) -> Tensor:
        return samplers[mode].run(range(batch), SEED, labels=labels)

    variants: dict[str, Work] = {
        f"{PEER}, {net}": peer_run(entry, problem.model(net, entry), problem.like) for net in problem.nets
    }
    variants |= {f"{OURS}, {mode}": lambda mode=mode: run(mode) for mode in samplers}
    nfe = samplers["eager"].plan.nfe
    u, t = torch.ones_like(problem.like), torch.zeros(batch, device=setting.device)

    def alone() -> None:
        for _ in range(nfe):
            problem.net.net(u, t, labels)

    def first() -> Tensor:
        return ours(MODES[0], 1).run([0], SEED, labels=None if labels is None else labels[:1])

    variants["network alone"] = alone
    variants[f"first sample: {OURS}"] = first
    variants[f"first sample: {PEER}"] = peer_run(entry, problem.model("eager", entry, 1), problem.like[:1])

    def check() -> list[Check]:
        eager = run("eager")
        tolerance = setting.tolerance(entry.tolerance)
        checks = [same_samples("fastscore", eager, entry, problem.model("eager", entry), problem.like, tolerance)]
        for mode in modes[1:]:
            error = float((run(mode.name) - eager).abs().max() / eager.abs().max())
            checks.append(Check(f"fastscore {mode.name} equals eager", error, setting.tolerance(mode.tolerance)))
        return checks

    pairs = [(f"{OURS}, {mode}", f"{PEER}, {net}") for mode in samplers for net in problem.nets]
    pairs.append((f"first sample: {OURS}", f"first sample: {PEER}"))
    steps = len(entry.grid(entry.schedule)) - 1

    def derive(seconds: dict[str, float]) -> dict[str, Any]:
        eager = {side: seconds[f"{side}, eager"] for side in (OURS, PEER)}
        return {
            "samples_per_s": {name: batch / value for name, value in seconds.items() if name.startswith((OURS, PEER))},
            "subtracted_ms_per_step": {k: 1000.0 * (v - seconds["network alone"]) / steps for k, v in eager.items()},
        }

    facts = {
        "library": entry.library, "solver": entry.name, "network": problem.name, "backend": setting.ops.name,
        "weights_sha256": fingerprint(problem.net.net), "nfe": nfe, "steps": steps, "batch": batch,
        "samplers": {mode: sampler.record() for mode, sampler in samplers.items()},
    }  # fmt: skip
    skipped = {} if "compiled" in problem.nets else {"compiled": setting.no_compile or ""}
    return Case(
        "peers", f"{entry.library}, {entry.name}, {nfe} evaluations, batch {batch}, {problem.name}", variants, pairs,
        check, (batch, "sample"), facts=facts, skipped=skipped, derive=derive,
        costed=[f"{k}, eager" for k in (OURS, PEER)],
    )  # fmt: skip


def points(setting: Setting, entry: Entry) -> Case:
    """Return the case on points of the plane: the model costs little, so the loop shows."""
    n, chunk = (1000, 256) if setting.quick else (setting.points, CHUNK)
    like = torch.empty((n, 2), device=setting.device)
    ours, model = sampler(exact(mixture()), entry, setting.execution(chunk)), mixture_model(entry.predicts)
    variants: dict[str, Work] = {
        OURS: lambda: ours.run(range(n), SEED),
        f"{PEER}, at once": peer_run(entry, model, like),
        f"{PEER}, chunks": peer_run(entry, model, like, chunk),
    }

    def check() -> list[Check]:
        return [same_samples("fastscore", ours.run(range(chunk), SEED), entry, model, like[:chunk])]

    facts = {
        "library": entry.library, "solver": entry.name, "nfe": ours.plan.nfe, "points": n, "chunk": chunk,
        "backend": ours.ops.name, "sampler": ours.record(),
    }  # fmt: skip
    return Case(
        "points", f"{entry.library}, {entry.name}, {n} points, {ours.plan.nfe} evaluations", variants,
        [(OURS, f"{PEER}, {kind}") for kind in ("at once", "chunks")], check, (n, "sample"), facts=facts,
        derive=lambda seconds: {"samples_per_s": {name: n / value for name, value in seconds.items()}},
        costed=list(variants),
    )  # fmt: skip
