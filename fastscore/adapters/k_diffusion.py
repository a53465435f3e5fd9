"""A sampler with k-diffusion's signature, ``sample(model, x, sigmas)``, around its denoisers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscore.engine.bind import by_rule
from fastscore.engine.loop import Step
from fastscore.guidance.mixture import Guidance
from fastscore.model.score import ScoreModel
from fastscore.plan.cfgpp import guides_itself
from fastscore.process.continuous import EDM, Flow
from fastscore.process.grid import Times
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers.adaptive import Adaptive
from fastscore.solvers.names import named


@torch.no_grad()
def sample(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    solver: Any = "dpmpp-2m",
    seed: int = 0,
    ids: Sequence[int] | Tensor | None = None,
    flow: bool = False,
    noise: Tensor | None = None,
    unguided: Callable[..., Tensor] | None = None,
    **options: Any,
) -> Tensor:
    """Return samples from the state x at sigmas[0], stepping at exactly these noise levels.

    The arguments before ``solver`` are k-diffusion's; in place of ``sample_dpmpp_2m(model, x, sigmas)``, say. The
    whole loop is this engine's. Sample i is a function of its state, of ``seed`` and of its id, whatever else is in the
    batch; k-diffusion draws from the global generator.

    Args:
        model: D(x, sigma[N], **extra_args) -> estimate of x_0, guided or not.
        x: [N, ..], x_0 + sigma z at sigmas[0] (so sigmas[0] times a normal for a prior): on any device, any float.
        sigmas: [n + 1], decreasing; a last 0 returns the estimate of x_0.
        callback: called once a step, before the state moves, with a dict of x, i, sigma, sigma_hat (above sigma where
            the solver adds noise first) and denoised.
        disable: of k-diffusion's progress bar, which there is none of here.
        solver: a name or a solver with a grid, see fastscore.solvers.
        seed, ids: of the noise; ids are 0 .. N - 1 if left out.
        flow: x = (1 - sigma) x_0 + sigma z, as of flow models in ComfyUI; sigmas are in 0 .. 1.
        noise: recorded normals [draws, N, ..] in place of generated ones; the first is the prior's, which x replaces.
        unguided: what ``model``, with its own guidance, is guided away from; steps are then those of CFG++, by any
            solver. Called as ``model``, after it at the same state or alone. Needed by CFGPlusPlus and its variants.
        options: of a solver by name: eta, s_noise, corrector, .., see fastscore.solvers.names.named.

    Raises:
        ValueError: sigmas that do not decrease, an adaptive solver, options that a solver does not have, or a solver
            of CFG++ without ``unguided``.
    """
    chosen = named(solver, **options) if isinstance(solver, str) else solver
    if isinstance(chosen, Adaptive):
        raise ValueError(f"solver = {solver!r} chooses its own steps; sigmas are for solvers with a grid")
    if options and not isinstance(solver, str):
        raise ValueError(f"{', '.join(options)}: options belong to a solver by name; {solver} has its own")
    levels = sigmas.detach().to("cpu", torch.float64).tolist()
    positive = [level for level in levels if level > 0.0]
    if len(levels) < 2 or not positive:
        raise ValueError(f"sigmas = {levels} must be at least two decreasing numbers, the last 0 or positive")
    top = max(levels)
    schedule = Flow() if flow else EDM(min(positive), 2.0 * top)  # twice: churn goes above the first level
    if unguided is None and guides_itself(chosen):
        raise ValueError(f"solver = {solver!r} is CFG++'s, which reads the unguided estimate, too: give unguided=")

    def denoising(denoiser: Callable[..., Tensor]) -> ScoreModel:
        net = Denoiser(denoiser, dict(extra_args or {}), x.dtype)
        return ScoreModel(net, tuple(x.shape[1:]), schedule, Parametrization("x0", "sigma" if not flow else "t"))

    # The model's output is the mixture already.
    guidance = None if unguided is None else Guidance(1.0, model=denoising(unguided), rule="cfg++")
    sampler = Sampler(
        denoising(model), guidance=guidance, solver=chosen, grid=Times(tuple(levels)), start="state", batch=len(x),
        graph="off",
        dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device,
    )  # fmt: skip
    groups = by_rule(chosen, guidance).steps(schedule, np.array(levels))
    rows = list(accumulate((len(group) for group in groups), initial=1))
    seen = None if callback is None else Callback(callback, x, levels, rows)
    ids = range(len(x)) if ids is None else ids
    return sampler.run(ids, seed, init=x, noise=noise, callback=seen).to(x.dtype)


class Denoiser:
    """A denoiser with its extra arguments, called in the dtype and under the inference mode that its caller set."""

    def __init__(self, model: Callable[..., Tensor], extra_args: dict[str, Any], dtype: torch.dtype) -> None:
        self.model, self.extra_args, self.dtype = model, extra_args, dtype
        self.inference = torch.is_inference_mode_enabled()  # weights made under it may not change outside of it

    def __call__(self, u: Tensor, sigma: Tensor, cond: None) -> Tensor:
        with torch.inference_mode(self.inference), torch.no_grad():
            return self.model(u.to(self.dtype), sigma.to(self.dtype), **self.extra_args).to(u.dtype)


class Callback:
    """k-diffusion's callback, called by the first row of each step that evaluates the network.

    ``rows`` are the first rows of the steps; row 0 is the state's own.
    """

    def __init__(
        self, callback: Callable[[dict[str, Any]], None], x: Tensor, levels: list[float], rows: list[int]
    ) -> None:
        self.callback, self.before, self.levels, self.rows = callback, x, levels, rows
        self.told = -1

    def __call__(self, row: Step) -> None:
        i = bisect_right(self.rows, row.row) - 1
        if i > self.told and row.x0 is not None:
            sigma, hat = (self.before.new_tensor(v) for v in (self.levels[i], row.t))
            self.told = i
            self.callback({"x": self.before, "i": i, "sigma": sigma, "sigma_hat": hat, "denoised": row.x0})
        self.before = row.x
