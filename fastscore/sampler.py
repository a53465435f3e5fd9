"""The facade: a model, a schedule, a solver and a grid become a sampler."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from fastscore import plan as plans
from fastscore.engine.adaptive.cost import Effort
from fastscore.engine.adaptive.run import AdaptiveBatches
from fastscore.engine.batches import Batches
from fastscore.engine.capture import MODES
from fastscore.engine.loop import Loop, Step
from fastscore.engine.picard import Parallel, Picard
from fastscore.engine.selfcheck import trusted
from fastscore.guidance.denoiser import Guide
from fastscore.guidance.mixture import Guidance, fold
from fastscore.model.conditions import Inputs, Known, Labels, condition_of, inputs_of, labels_of
from fastscore.model.score import ScoreModel
from fastscore.network.jit import compiled
from fastscore.network.prepare import DTYPES, Numerics, numerics, prepare
from fastscore.ops.noise import NoiseKey
from fastscore.plan.rows import Plan, Solver
from fastscore.process.grid import Grid, Span, Times, default_grid, within
from fastscore.process.schedule import Schedule
from fastscore.solvers import DPMpp2M
from fastscore.solvers.adaptive import Adaptive


class Sampler:
    """Draws samples of a score model. A pure function of (settings, seed, sample id).

    A sampler owns its buffers and does one run at a time; use one for each thread.

        x = Sampler(model, solver=DPMpp2M(), grid=karras(20)).run(ids=range(64), seed=0)

    Args:
        model: the score model. A network that is an nn.Module is moved to ``device`` and set to eval mode.
        schedule: the forward SDE to reverse; the model's own if left out. With another one, a grid
            without a start begins where the model's noise ends, if that is earlier.
        solver: see fastscore.solvers.
        grid: knots, see fastscore.grid; 20 steps if left out. A Span for an adaptive solver, from T
            to t_end and then to the estimate of x0 if left out.
        batch: micro-batch, or slots of an adaptive solver. The network always runs at this size (the
            tail is padded with dummy samples that are dropped), so that a sample does not depend on how
            many are drawn.
        clip: bound on the x0 estimate of every row but Langevin's norm-dependent ones, or None.
        device: of the state and the network.
        dtype: of the state; torch.float32, or torch.float64 for parity runs.
        backend: "auto", "reference", "cpp" or "triton"; see fastscore.backend.
        compile: of the network: "off", "full" or "regional"; see fastscore.engine.compile.
        network: "own" evaluates it as it is; "auto", "fp32" and "bf16" compile it ahead of time on first
            use and check it against itself; see fastscore.network.prepare.
        graph: CUDA graphs: "off", "step" (one a repeated group of rows), "loop" (one for all), or
            "auto", which times them on the first batch and keeps the fastest; off on the CPU.
        parallel: Picard sweeps over a window of steps in place of one step after the other; see
            fastscore.engine.parallel. No graphs then.
        guidance: classifier-free guidance or autoguidance; see fastscore.guidance.
        guide: changes the estimate of x0 in every row that evaluates: dynamic thresholding, DPS, .., see
            fastscore.guides. It is Python and may differentiate, so nothing is captured: graph is off.
        start: what samples start from: "prior"; "data", the ``init`` of a run noised to the grid's first time
            (SDEdit: start the grid at an intermediate time); "state", ``init`` as it is (decoding a latent).

    Raises:
        ValueError: a solver, grid and model that do not fit each other.
    """

    def __init__(
        self,
        model: ScoreModel,
        *,
        schedule: Schedule | None = None,
        solver: Solver | Adaptive | None = None,
        grid: Grid | Times | Span | None = None,
        batch: int = 64,
        clip: float | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        compile: str = "off",
        graph: str = "auto",
        network: str = "own",
        parallel: Picard | None = None,
        guidance: Guidance | None = None,
        guide: Guide | None = None,
        start: str = "prior",
    ) -> None:
        self.batch, self.dtype, self.device = batch, dtype, torch.device(device)
        _check(batch, dtype, self.device, compile, graph, network, parallel, guidance, guide)
        self.graph = graph if self.device.type == "cuda" and guide is None else "off"
        self.parallel = parallel
        self.ops = trusted(backend, self.device, dtype)
        self.schedule = schedule if schedule is not None else model.schedule
        self.solver = solver if solver is not None else DPMpp2M()
        adaptive = isinstance(self.solver, Adaptive)
        wanted = grid if grid is not None else Span() if adaptive else default_grid(self.schedule)
        if isinstance(wanted, Span) != adaptive:
            raise ValueError(
                f"{type(self.solver).__name__} {'chooses its own steps' if adaptive else 'needs the steps of a grid'}; "
                f"grid must be {'a Span' if adaptive else 'a Grid or Times'}, not {wanted}"
            )
        self.grid = within(wanted, self.schedule, model.schedule)
        if guidance is not None:
            guidance.fits(model)
        self.guidance, self.guide, self.start = guidance, guide, start
        if adaptive:
            _no_plan(clip=clip, graph=graph, parallel=parallel, guidance=guidance, guide=guide, start=start)
        self.plan = None if adaptive else self._planned(model, clip)
        self.net_dtype = network_dtype(model.net, dtype)
        self.model = self._placed(model, compile)
        if guidance is not None and guidance.model is not None:
            if network_dtype(guidance.model.net, dtype) != self.net_dtype:
                raise ValueError(f"guidance: the second network must be in {self.net_dtype}, like the first")
            self.guidance = replace(guidance, model=self._placed(guidance.model, compile))
        self.network, self.compile = network, compile

    def _placed(self, model: ScoreModel, compile: str) -> ScoreModel:
        """Return a model whose network lives on the device, in eval mode, compiled if that is wanted."""
        if isinstance(model.net, nn.Module):
            model.net.to(self.device).eval()
        return replace(model, net=compiled(model.net, compile, self.device))

    def _planned(self, model: ScoreModel, clip: float | None) -> Plan:
        """Return the plan, folded and checked."""
        assert not isinstance(self.solver, Adaptive)
        unfolded = plans.make_plan(self.solver, self.schedule, self.grid(self.schedule), self.start)
        if clip is not None:
            unfolded = plans.clip(unfolded, clip)
        plan = plans.validate(fold(unfolded, model, self.guidance, self.guide is not None))
        d = math.prod(model.shape)
        if d < 32 and any(row.langevin and row.langevin.norm != "batch" for row in plan.rows):
            warnings.warn(
                f"Langevin with per-sample norms is biased in {d} dimensions (its step depends on |score|); "
                "use AnnealedLangevin",
                stacklevel=3,
            )
        return plan

    @cached_property
    def prepared(self) -> ScoreModel:
        """The model as it runs, its network prepared as ``network`` says."""
        together = 1 if self.parallel is None else min(self.parallel.window, self.plan.nfe if self.plan else 1)
        return prepare(self.model, self.batch * together, self.device, self.network)

    @property
    def numerics(self) -> Numerics:
        """How the network is evaluated; prepares it if it has not yet been."""
        found = numerics(self.prepared.net)
        return found if self.compile == "off" else replace(found, compile=self.compile)

    @cached_property
    def engine(self) -> Batches | Parallel | AdaptiveBatches:
        """What runs the plan or the adaptive solver; its buffers are made on first use."""
        return self._engine(known=False)

    @cached_property
    def inpainting(self) -> Batches | Parallel | AdaptiveBatches:
        """What runs the plan around known data."""
        return self._engine(known=True)

    def _engine(self, known: bool) -> Batches | Parallel | AdaptiveBatches:
        how = (self.device, self.dtype, self.ops, self.net_dtype)
        if isinstance(self.solver, Adaptive):
            assert isinstance(self.grid, Span)
            return AdaptiveBatches(self.prepared, self.schedule, self.solver, self.grid, self.batch, *how)
        assert self.plan is not None
        guidance = self.guidance
        if guidance is not None and guidance.model is not None:
            guidance = replace(guidance, model=prepare(guidance.model, self.batch, self.device, self.network))
        loop = Loop(self.plan, self.prepared, self.batch, *how, guidance, self.guide, known)
        return Batches(loop, self.graph) if self.parallel is None else Parallel(loop, self.parallel)

    @property
    def way(self) -> str:
        """How batches run: "off" (the plain loop), captured "step" or "loop" (captures if need be), "picard"."""
        only_inpainted = "inpainting" in vars(self) and "engine" not in vars(self)
        return (self.inpainting if only_inpainted else self.engine).way  # without capturing what has not run

    def prepare(self, seed: int = 0) -> dict[str, float | str]:
        """Compile and capture now rather than on the first batch; return what it took, in seconds.

        Keys: ``first_s``, the first run of the plain loop with any compilation in it; ``capture_s``;
        ``graph``, the way that will run; and ``off_s``, ``step_s``, ``loop_s`` where they were timed.
        """
        key = NoiseKey.of(seed, range(self.batch), self.device)
        return self.engine.prepare(key, condition_of(self.model, key, None, None))

    def run(
        self,
        ids: Sequence[int],
        seed: int = 0,
        *,
        labels: Labels = None,
        cond: Tensor | None = None,
        init: Tensor | None = None,
        known: Known | None = None,
        y: Tensor | None = None,
        noise: Tensor | None = None,
        callback: Callable[[Step], None] | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draw the samples ``ids`` of ``seed``.

        Args:
            ids: sample ids, 0 .. 2^63-1, in any order; sample k is the same whatever else is drawn.
            seed: 0 .. 2^64-1.
            labels: of a class-conditional model: one label for all, one an id, "random" (uniform,
                a function of seed and id), or None for the null class.
            cond: of a model with ``cond_shape``: [n, *cond_shape], or [*cond_shape] for all; zeros if left out.
            init: where samples start from, [n, *shape] or [*shape]; belongs to start = "data" and "state".
            known: the known part of the data, which the samples fill in.
            y: what the guide steers to, [n, ..].
            noise: recorded normals [plan.draws, n, *shape] in place of generated ones; with ``known``, one
                more for each row of the plan.
            callback: called with a Step after each row of each micro-batch.
            progress: show a progress bar.

        Returns:
            [n, *shape] in the state's dtype, in the order of ``ids``.

        Raises:
            ValueError: bad ids, seed or labels, or a tensor of a shape that does not fit.
            NonFiniteError: a sample became NaN or Inf.
        """
        key, positions = self._start(ids, seed, labels, cond, init, known, y, noise, callback, progress)
        out = torch.empty((len(key.ids), *self.model.shape), dtype=self.dtype, device=self.device)
        for at, x in positions:
            out[at] = x
        return out

    def stream(
        self,
        ids: Sequence[int],
        seed: int = 0,
        *,
        labels: Labels = None,
        cond: Tensor | None = None,
        init: Tensor | None = None,
        known: Known | None = None,
        y: Tensor | None = None,
        noise: Tensor | None = None,
        callback: Callable[[Step], None] | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (ids, samples) a micro-batch at a time; arguments as for ``run``.

        An adaptive solver yields samples as they are done, in no order.
        """
        key, positions = self._start(ids, seed, labels, cond, init, known, y, noise, callback, progress)
        return ((key.ids[at], x) for at, x in positions)

    @property
    def effort(self) -> Effort:
        """What the last run of an adaptive solver cost.

        Raises:
            ValueError: a solver with a plan, whose cost is ``plan.nfe`` for every sample.
        """
        if not isinstance(self.engine, AdaptiveBatches):
            raise ValueError(f"effort: {type(self.solver).__name__} has a plan; its cost is plan.nfe")
        return self.engine.effort

    def label_of(self, ids: Sequence[int], seed: int, labels: Labels) -> Tensor | None:
        """Return the label that ``run`` gives each sample, int64 [n]; None if unconditional."""
        return labels_of(self.model, NoiseKey.of(seed, ids, self.device), labels)

    def _start(
        self,
        ids: Sequence[int],
        seed: int,
        labels: Labels,
        cond: Tensor | None,
        init: Tensor | None,
        known: Known | None,
        y: Tensor | None,
        noise: Tensor | None,
        callback: Callable[[Step], None] | None,
        progress: bool,
    ) -> tuple[NoiseKey, Iterator[tuple[slice | Tensor, Tensor]]]:
        """Check the arguments of a run; return its key and what yields (positions, samples)."""
        key = NoiseKey.of(seed, ids, self.device)
        n = len(key.ids)
        if (init is None) != (self.start == "prior"):
            raise ValueError(f"init = {'None' if init is None else 'a tensor'} does not go with start = {self.start!r}")
        if y is not None and self.guide is None:
            raise ValueError("y is what a guide steers to; this sampler has none: Sampler(guide=..)")
        if known is not None and self.plan is None:
            raise ValueError("known: the rows of a plan put known data in; use a solver with a grid")
        if noise is not None:
            draws = 1 if self.plan is None else self.plan.draws
            if known is not None and self.plan is not None:
                draws = max(draws, 1) + len(self.plan.rows)
            want = (draws, n, *self.model.shape)
            flat = (n, math.prod(self.model.shape))
            if not isinstance(noise, Tensor) or len(noise) < want[0] or noise.shape[1:] not in (want[1:], flat):
                raise ValueError(f"recorded noise has shape {tuple(noise.shape)}; this plan needs a tensor {want}")
            noise = noise.reshape(len(noise), n, -1).to(self.device)
        given: Inputs = inputs_of(self.model, key, init, known, y)
        engine = self.engine if known is None else self.inpainting
        condition = condition_of(self.model, key, labels, cond)
        return key, engine.stream(key, condition, noise, callback, progress, given)


def network_dtype(net: object, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that a network reads: that of its parameters, or the state's if it has none."""
    parameters = net.parameters() if isinstance(net, nn.Module) else ()
    own = next((p.dtype for p in parameters if p.is_floating_point()), dtype)
    if own != dtype and (dtype == torch.float64 or own == torch.float64):
        raise ValueError(f"the network is in {own} and the state in {dtype}; convert it with net.to({dtype})")
    return own


def _check(
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    compile: str,
    graph: str,
    network: str,
    parallel: Picard | None,
    guidance: Guidance | None,
    guide: Guide | None,
) -> None:
    """Raise ValueError for settings that are out of range or do not go together, whatever the model."""
    if batch < 1:
        raise ValueError(f"batch = {batch} must be at least 1")
    if graph not in ("auto", "off", *MODES):
        raise ValueError(f"graph = {graph!r} must be auto, off, {' or '.join(MODES)}")
    if network not in DTYPES:
        raise ValueError(f"network = {network!r} must be one of {', '.join(DTYPES)}")
    if network != "own" and (compile != "off" or dtype != torch.float32):
        raise ValueError(f"network = {network!r} compiles by itself and for a float32 state; use network='own'")
    if device.type != "cuda" and graph in MODES:
        raise ValueError(f"graph = {graph!r} needs a CUDA device, not {device}; use graph='auto'")
    if parallel is not None and graph in MODES:
        raise ValueError(f"graph = {graph!r} captures rows in order; leave it or parallel out")
    if parallel is not None and (guidance or guide):
        raise ValueError("parallel: sweeps make one plain evaluation a row; leave guidance and guide out")
    if guide is not None and graph in MODES:
        raise ValueError(f"graph = {graph!r}: a guide is Python that may differentiate; use graph='auto' or 'off'")


def _no_plan(**settings: object) -> None:
    """Raise ValueError for what only the rows of a plan can do."""
    plain = {"graph": ("auto", "off"), "start": ("prior",)}
    for name, value in settings.items():
        if value not in plain.get(name, (None,)):
            raise ValueError(f"{name} = {value!r} needs a plan, which an adaptive solver has not; leave {name} out")
