"""Solvers by name: what the command line and ``Sampler(solver="heun")`` share.

A new solver is known to both by its line in the table here. Importing it costs no NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fastscore import solvers as s
from fastscore.errors import typed

if TYPE_CHECKING:
    from fastscore.plan.rows import Solver
    from fastscore.solvers.adaptive import Adaptive
    from fastscore.solvers.correctors import AnnealedLangevin, Langevin

# Recommended for 5 to 1000 steps by bench/studies/work_precision.py.
DEFAULT = "dpmpp-2m"
# What the other options are if they are left out, where that does not depend on the solver.
STEPS, RHO, SNR, CORRECTIONS, NORM, VARIANCE, PREDICTOR = 20, 7.0, 0.16, 1, "sample", "small", "reverse-diffusion"

Maker = Callable[..., Any]
_PLANNED: dict[str, Maker] = {
    "dpmpp-2m": lambda: s.DPMpp2M(),
    "ddim": lambda eta=0.0: s.DDIM(eta),
    "euler": lambda: s.Euler(),
    "heun": lambda: s.Heun(),
    "midpoint": lambda: s.RK2(),
    "rk4": lambda: s.RK4(),
    "implicit-midpoint": lambda: s.ImplicitMidpoint(),
    "edm-churn": lambda s_noise=1.003: s.Churn(noise=s_noise),
    "dpm-1": lambda: s.DPMSolver(1),
    "dpm-2": lambda: s.DPMSolver(2),
    "dpm-3": lambda: s.DPMSolver(3),
    "dpm-2m": lambda: s.DPMMultistep(2, "eps", "paper"),
    "dpm-3m": lambda: s.DPMMultistep(3, "eps"),
    "dpmpp-2s": lambda: s.DPMSolver(2, "x0"),
    "dpmpp-3s": lambda: s.DPMSolver(3, "x0"),
    "dpmpp-3m": lambda: s.DPMMultistep(3),
    "deis": lambda: s.DEIS(),
    "lms": lambda: s.LMS(),
    "unipc": lambda: s.UniPC(),
    "sa": lambda: s.SASolver(),
    "dpm-2-ancestral": lambda: s.AncestralSplit(s.DPMSolver(2)),
    "dpmpp-2s-ancestral": lambda: s.AncestralSplit(s.DPMSolver(2, "x0")),
    "dpmpp-sde": lambda: s.DPMSolver(2, "x0", 1.0),
    "dpmpp-2m-sde": lambda: s.DPMMultistep(2, "x0", "paper", 1.0),
    "dpmpp-3m-sde": lambda: s.DPMMultistep(3, "x0", "exact", 1.0),
    "ddpm": lambda variance=VARIANCE: s.Ancestral(variance),
    "ancestral": lambda variance=VARIANCE: s.Ancestral(variance),
    "em": lambda eta=1.0: s.EulerMaruyama(eta),
    "milstein": lambda eta=1.0: s.Milstein(eta),
    "reverse-diffusion": lambda: s.ReverseDiffusion(),
    "heun-sde": lambda: s.StochasticHeun(),
    "pndm": lambda: s.PNDM(),
    "plms": lambda: s.PNDM(prk=False),
    "ipndm": lambda: s.IPNDM(),
    "none": lambda: None,
}
_ADAPTIVE: dict[str, Maker] = {
    "dopri5": lambda **tolerances: s.Dopri5(**tolerances),
    "bs32": lambda **tolerances: s.BogackiShampine(**tolerances),
    "dpm12": lambda **tolerances: s.DPMAdaptive(2, **tolerances),
    "dpm23": lambda **tolerances: s.DPMAdaptive(3, **tolerances),
    "ggf": lambda **tolerances: s.GottaGoFast(**tolerances),
}
# Those that draw noise of their own at each step, ddim apart, which does so with eta > 0.
_NOISY = (
    "edm-churn", "sa", "dpm-2-ancestral", "dpmpp-2s-ancestral", "dpmpp-sde", "dpmpp-2m-sde", "dpmpp-3m-sde", "ddpm",
    "ancestral", "em", "milstein", "reverse-diffusion", "heun-sde",
)  # fmt: skip
ADAPTIVE = tuple(_ADAPTIVE)
SOLVERS = (*_PLANNED, "score-sde", *ADAPTIVE)
CORRECTORS = ("none", "langevin", "ald")
PREDICTORS = ("euler-maruyama", "reverse-diffusion", "ancestral-sampling", "none")


@typed
def named(
    name: str,
    *,
    eta: float | None = None,
    variance: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    predictor: str | None = None,
    corrector: str | None = None,
    snr: float | None = None,
    corrections: int | None = None,
    norm: str | None = None,
    s_noise: float | None = None,
) -> Solver | Adaptive:
    """Return a solver by its name. An option that is None counts as left out.

    Args:
        name: one of SOLVERS; underscores and any case will do.
        eta: noise of ddim, 0 .. 1 (0 if left out), and of em and milstein, at least 0 (1 if left out).
        variance: of ddpm and ancestral, "small" or "large".
        rtol, atol: relative and absolute tolerance of the solvers of ADAPTIVE, positive.
        predictor: of score-sde, one of PREDICTORS.
        corrector: Langevin steps at each time, after any solver with a grid; one of CORRECTORS.
        snr, corrections: of the corrector: signal-to-noise ratio, positive, and steps a time, at least 1.
        norm: of langevin: "sample", "batch", "expected" or "tutorial"; score-sde has its own.
        s_noise: factor on the noise of any solver with a grid that draws some, at least 0 (1 if left out; 1.003 of
            edm-churn); a corrector's noise stays. See ScaledNoise.

    Raises:
        ValueError: an unknown name, an option that belongs to other solvers, or a value out of range.
    """
    name = _listed("solver", name, SOLVERS)
    options = {
        "eta": eta, "variance": variance, "rtol": rtol, "atol": atol, "predictor": predictor, "corrector": corrector,
        "snr": snr, "corrections": corrections, "norm": norm, "s_noise": s_noise,
    }  # fmt: skip
    options = {k: v for k, v in options.items() if v is not None}
    refuse_unused(name, options)
    if name in _ADAPTIVE:
        return _ADAPTIVE[name](**options)
    steps = _corrector(
        name, corrector, SNR if snr is None else snr, CORRECTIONS if corrections is None else corrections, norm
    )
    if name == "score-sde":
        return s.ScoreSDE(_listed("predictor", predictor or PREDICTOR, PREDICTORS).replace("-", "_"), steps)
    if name == "none" and steps is None:
        raise ValueError("solver none needs a corrector: langevin or ald")
    own = ("eta", "variance", "s_noise") if name == "edm-churn" else ("eta", "variance")
    solver = _PLANNED[name](**{k: options[k] for k in own if k in options})
    if s_noise is not None and name != "edm-churn":
        solver = s.ScaledNoise(solver, s_noise)
    return solver if steps is None else s.PredictorCorrector(solver, steps)


def _corrector(
    solver: str, name: str | None, snr: float, corrections: int, norm: str | None
) -> Langevin | AnnealedLangevin | None:
    name = _listed("corrector", name or "none", CORRECTORS)
    if name == "none":
        return None
    if name == "ald":
        return s.AnnealedLangevin(snr, corrections)
    return s.Langevin(snr, corrections, "batch" if solver == "score-sde" else norm or NORM)


def _listed(kind: str, name: str, names: tuple[str, ...]) -> str:
    """Return a name as it is listed; raise ValueError for another one."""
    listed = str(name).replace("_", "-").lower()
    if listed not in names:
        raise ValueError(f"{kind} = {name!r} must be one of {', '.join(names)}")
    return listed


def refuse_unused(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option, one of those that were set, that the solver ``name`` would ignore."""
    corrector = str(options.get("corrector", "none")).lower()
    noisy = name in _NOISY or (name == "ddim" and options.get("eta", 0.0) != 0.0)
    uses = {
        "eta": (name in ("ddim", "em", "milstein"), "the solvers ddim and em"),
        "variance": (name in ("ddpm", "ancestral"), "the solvers ddpm and ancestral"),
        "rtol": (name in _ADAPTIVE, f"the solvers {', '.join(ADAPTIVE)}"),
        "atol": (name in _ADAPTIVE, f"the solvers {', '.join(ADAPTIVE)}"),
        "predictor": (name == "score-sde", "the solver score-sde"),
        "corrector": (name not in _ADAPTIVE, "solvers with a grid"),
        "snr": (corrector != "none", "the correctors langevin and ald"),
        "corrections": (corrector != "none", "the correctors langevin and ald"),
        "norm": (corrector == "langevin" and name != "score-sde", "the corrector langevin"),
        "s_noise": (noisy, f"the solvers that draw noise on a grid: ddim with eta > 0, {', '.join(_NOISY)}"),
    }
    for option in options:
        applies, owner = uses[option]
        if not applies:
            raise ValueError(f"{option} belongs to {owner}; leave it out with solver {name}")
