"""Solvers by name: what the command line and ``Sampler(solver="heun")`` share.

A new solver is known to both by its line in the table here. Importing it costs no NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastscore import solvers as s
from fastscore.errors import short, typed
from fastscore.process.names import listed
from fastscore.solvers.aliases import Alias, found

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
    "edm-churn": lambda s_churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.003: s.Churn(
        s.Heun(), s_churn, s_min, s_max, s_noise
    ),
    "dpm-1": lambda: s.DPMSolver(1),
    "dpm-2": lambda: s.DPMSolver(2),
    "dpm-3": lambda: s.DPMSolver(3),
    "dpm-fast": lambda prediction="eps": s.DPMFast(prediction),
    "dpm-2m": lambda: s.DPMMultistep(2, "eps", "paper"),
    "dpm-3m": lambda: s.DPMMultistep(3, "eps"),
    "dpmpp-2s": lambda: s.DPMSolver(2, "x0"),
    "dpmpp-3s": lambda: s.DPMSolver(3, "x0"),
    "dpmpp-3m": lambda: s.DPMMultistep(3),
    "deis": lambda order=3: s.DEIS(order),
    "deis-tab": lambda order=3: s.DEIS(order, "tab"),
    "lms": lambda order=4: s.LMS(order, reach=0.5 * math.pi),
    "unipc": lambda order=2, prediction="x0": s.UniPC(order, prediction=prediction),
    "sa": lambda eta=1.0: s.SASolver(tau=eta),
    "euler-ancestral": lambda eta=1.0: s.AncestralSplit(s.DDIM(), eta),
    "dpm-2-ancestral": lambda eta=1.0: s.AncestralSplit(s.DPMSolver(2), eta),
    "dpmpp-2s-ancestral": lambda eta=1.0: s.AncestralSplit(s.DPMSolver(2, "x0"), eta),
    "euler-ancestral-rf": lambda eta=1.0: s.AncestralSplit(s.DDIM(), eta, "flow"),
    "dpm-2-ancestral-rf": lambda eta=1.0: s.AncestralSplit(s.DPMSolver(2, "flow"), eta, "flow"),
    "dpmpp-2s-ancestral-rf": lambda eta=1.0: s.AncestralSplit(s.DPMSolver(2, "x0"), eta, "flow"),
    "dpmpp-sde": lambda eta=1.0: s.DPMSolver(2, "x0", eta),
    "dpmpp-2m-sde": lambda eta=1.0: s.DPMMultistep(2, "x0", "paper", eta),
    "dpmpp-2m-sde-heun": lambda eta=1.0: s.DPMMultistep(2, "x0", "exact", eta),
    "dpmpp-3m-sde": lambda eta=1.0: s.DPMMultistep(3, "x0", "exact", eta),
    "res-multistep": lambda: s.DPMMultistep(2, reach=0.5 * math.pi),
    "res-multistep-ancestral": lambda eta=1.0: s.DPMMultistep(2, "x0", "exact", eta, noise="split"),
    "res-2s": lambda: s.SEEDS(2, 0.0, form="phi_2"),
    "exp-heun-2-x0": lambda: s.SEEDS(2, 0.0, r=1.0, form="phi_2"),
    "exp-heun-2-x0-sde": lambda eta=1.0: s.SEEDS(2, eta, r=1.0, form="phi_2"),
    "seeds-2": lambda eta=1.0: s.SEEDS(2, eta),
    "seeds-3": lambda eta=1.0: s.SEEDS(3, eta),
    "er-sde": lambda: s.ERSDE(3),
    "er-sde-1": lambda: s.ERSDE(1),
    "er-sde-2": lambda: s.ERSDE(2),
    "er-sde-3": lambda: s.ERSDE(3),
    "ddpm": lambda variance=VARIANCE: s.Ancestral(variance),
    "ancestral": lambda variance=VARIANCE: s.Ancestral(variance),
    "em": lambda eta=1.0: s.EulerMaruyama(eta),
    "milstein": lambda eta=1.0: s.Milstein(eta),
    "reverse-diffusion": lambda: s.ReverseDiffusion(),
    "heun-sde": lambda eta=1.0: s.StochasticHeun(eta),
    "flow-sde": lambda eta=0.7: s.FlowSDE(eta),
    "cps": lambda eta=0.8: s.CPS(eta),
    "dance": lambda eta=0.3: s.DanceSDE(eta),
    "lcm": lambda: s.Renoise(),
    "consistency": lambda: s.Renoise(),
    "pingpong": lambda: s.Renoise(),
    "tcd": lambda eta=0.3: s.Renoise(eta, "time"),
    "af3": lambda s_noise=1.003: s.AlphaFold3(noise_scale=s_noise),
    "pndm": lambda: s.PNDM(),
    "plms": lambda: s.PNDM(prk=False),
    "ipndm": lambda order=4: s.IPNDM(order),
    "ipndm-v": lambda order=4: s.LMS(order, reach=0.5 * math.pi),
    "gradient-estimation": lambda: s.GradientEstimation(),
    "heunpp2": lambda: s.HeunPP(),
    "none": lambda: None,
    # ComfyUI's; guidance of a sampler is then by CFG++, as of any other solver with Guidance(.., rule="cfg++").
    "euler-cfg-pp": lambda: s.CFGPlusPlus(s.DDIM()),
    "euler-ancestral-cfg-pp": lambda eta=1.0: s.CFGPlusPlus(s.AncestralSplit(s.DDIM(), eta)),
    "dpmpp-2s-ancestral-cfg-pp": lambda eta=1.0: s.CFGPlusPlusVariant("2s", eta),
    "dpmpp-2m-cfg-pp": lambda: s.CFGPlusPlusVariant("2m"),
    "gradient-estimation-cfg-pp": lambda: s.CFGPlusPlus(s.GradientEstimation()),
    "res-multistep-cfg-pp": lambda: s.CFGPlusPlusVariant("res"),
    "res-multistep-ancestral-cfg-pp": lambda eta=1.0: s.CFGPlusPlusVariant("res", eta),
    "cfgpp-ud10-ab": lambda: s.CFGPlusPlusVariant("ud10-ab"),
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
    "edm-churn", "sa", "euler-ancestral", "dpm-2-ancestral", "dpmpp-2s-ancestral", "dpmpp-sde", "dpmpp-2m-sde",
    "dpmpp-2m-sde-heun", "dpmpp-3m-sde", "res-multistep-ancestral", "exp-heun-2-x0-sde", "seeds-2", "seeds-3", "er-sde",
    "er-sde-1", "er-sde-2", "er-sde-3", "ddpm", "ancestral", "em", "milstein", "reverse-diffusion", "heun-sde",
    "flow-sde", "cps", "dance", "euler-ancestral-rf", "dpm-2-ancestral-rf", "dpmpp-2s-ancestral-rf", "lcm",
    "consistency", "pingpong", "tcd", "af3", "euler-ancestral-cfg-pp", "dpmpp-2s-ancestral-cfg-pp",
    "res-multistep-ancestral-cfg-pp",
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
    eta_window: tuple[float, float] | None = None,
    variance: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    predictor: str | None = None,
    corrector: str | None = None,
    snr: float | None = None,
    corrections: int | None = None,
    norm: str | None = None,
    s_churn: float | None = None,
    s_min: float | None = None,
    s_max: float | None = None,
    s_noise: float | None = None,
    order: int | None = None,
    prediction: str | None = None,
    restart: Sequence[Sequence[float]] | None = None,
) -> Solver | Adaptive:
    """Return a solver by its name. An option that is None counts as left out.

    Args:
        name: one of SOLVERS, or what ComfyUI, k-diffusion, A1111 or diffusers call theirs ("DPM++ 2M SDE", "uni_pc",
            "comfyui:deis"; see solvers/NAMES.md); underscores and any case will do.
        eta: noise, of solvers that have one: of ddim 0 .. 1 (0 if left out), of the others at least 0 (1 if left out,
            but 0.7 of flow-sde, 0.8 of cps, at most 1, and 0.3 of dance and tcd).
        eta_window: (low, high), the levels sigma / alpha of the steps that have it, by their start; no noise elsewhere.
        variance: of ddpm and ancestral, "small" or "large".
        rtol, atol: relative and absolute tolerance of the solvers of ADAPTIVE, positive.
        predictor: of score-sde, one of PREDICTORS.
        corrector: Langevin steps at each time, after any solver with a grid; one of CORRECTORS.
        snr, corrections: of the corrector: signal-to-noise ratio, positive, and steps a time, at least 1.
        norm: of langevin: "sample", "batch", "expected" or "tutorial"; score-sde has its own.
        s_churn, s_min, s_max: of edm-churn: S_churn, at least 0 (40), and the levels sigma / alpha from which to which
            it adds noise (0.05 and 50).
        s_noise: factor on the noise of any solver with a grid that draws some, at least 0 (1 if left out; 1.003 of
            edm-churn); a corrector's noise stays. See ScaledNoise.
        order: of deis, deis-tab, lms, unipc, ipndm and ipndm-v; the others' orders are in their names.
        prediction: what unipc and dpm-fast extrapolate, "x0" or "eps".
        restart: (low, high, steps, times) for each Interval of Restart around any solver with a grid; the last two may
            be left out, 3 and 1.

    Raises:
        ValueError: an unknown name, an option that belongs to other solvers, or a value out of range.
    """
    alias = _alias(name)
    if isinstance(alias.solver, str):
        known, maker, noisy = alias.solver, _PLANNED.get(alias.solver), alias.solver in _NOISY
    else:
        known, maker, noisy = str(name), alias.solver, alias.noisy
    options = {
        "eta": eta, "eta_window": eta_window, "variance": variance, "rtol": rtol, "atol": atol,
        "predictor": predictor, "corrector": corrector, "snr": snr, "corrections": corrections, "norm": norm,
        "s_churn": s_churn, "s_min": s_min, "s_max": s_max, "s_noise": s_noise, "order": order,
        "prediction": prediction, "restart": restart,
    }  # fmt: skip
    options = {k: v for k, v in options.items() if v is not None}
    own = _options(maker)
    _refuse_unused(known, own, noisy, options)
    if known in _ADAPTIVE:
        return _ADAPTIVE[known](**options)
    steps = _corrector(
        known, corrector, SNR if snr is None else snr, CORRECTIONS if corrections is None else corrections, norm
    )
    again = () if restart is None else _intervals(restart)
    if known == "score-sde":
        return s.ScoreSDE(listed("predictor", predictor or PREDICTOR, PREDICTORS).replace("-", "_"), steps)
    if known == "none" and steps is None:
        raise ValueError("solver none needs a corrector: langevin or ald")
    if eta_window is not None:
        from fastscore.solvers.eta import EtaWindow  # which loads NumPy

        options["eta"] = EtaWindow(*eta_window, 1.0 if eta is None else eta, of="ratio")
    assert callable(maker)
    solver = maker(**{k: options[k] for k in own if k in options})
    solver = s.Restart(again, solver) if again else solver
    if s_noise is not None and "s_noise" not in own:
        solver = s.ScaledNoise(solver, s_noise)
    return solver if steps is None else s.PredictorCorrector(solver, steps)


solver = named  # fastscore.solver


def chosen(solver: Solver | Adaptive | str | None, grid: Any) -> tuple[Solver | Adaptive, Any]:
    """Return the solver, the default one for None, and the grid, that of a name as "DPM++ 2M Karras" for None."""
    if solver is not None and not isinstance(solver, str):
        return solver, grid
    name = solver or DEFAULT
    return named(name), grid_of(name) if grid is None else grid


def grid_of(name: str) -> str | None:
    """Return the grid that the name of a solver says, if it says one."""
    return _alias(name).grid


def is_adaptive(name: str) -> bool:
    """Return whether the solver of a name chooses its own steps, and so has no grid."""
    return _alias(name).solver in ADAPTIVE


def _alias(name: str) -> Alias:
    """Return what a name stands for, ours or another project's; ValueError for one that nobody has."""
    ours = str(name).replace("_", "-").lower()
    return Alias(ours) if ours in SOLVERS else found(name, SOLVERS)


def _corrector(
    solver: str, name: str | None, snr: float, corrections: int, norm: str | None
) -> Langevin | AnnealedLangevin | None:
    name = listed("corrector", name or "none", CORRECTORS)
    if name == "none":
        return None
    if name == "ald":
        return s.AnnealedLangevin(snr, corrections)
    return s.Langevin(snr, corrections, "batch" if solver == "score-sde" else norm or NORM)


def _intervals(restart: Any) -> tuple[Any, ...]:
    """Return restarts of (low, high, steps, times), the last two of which may be left out."""
    try:
        return tuple(s.Interval(*one) for one in restart)
    except TypeError:  # no sequence, or one of another length
        raise ValueError(f"restart = {short(restart)} must be a list of (low, high, steps, times)") from None


def _options(maker: object) -> tuple[str, ...]:
    """Return the options of what makes a solver with a grid."""
    code = getattr(maker, "__code__", None)
    return () if code is None else code.co_varnames[: code.co_argcount]


def owning(option: str) -> list[str]:
    """Return the solvers that an option is one of their own of."""
    return [name for name, maker in _PLANNED.items() if option in _options(maker)]


def _refuse_unused(name: str, own: tuple[str, ...], noisy: bool, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option, one of those that were set, that a solver would ignore."""
    corrector = str(options.get("corrector", "none")).lower()
    noisy = noisy or (name == "ddim" and options.get("eta", 0.0) != 0.0)
    etas = ", ".join(owning("eta"))
    planned = name not in (*_ADAPTIVE, "score-sde", "none")
    uses = {
        "eta": ("eta" in own, f"the solvers {etas}"),
        "eta_window": ("eta" in own and noisy, f"the solvers {etas}; of ddim with eta > 0"),
        "rtol": (name in _ADAPTIVE, f"the solvers {', '.join(ADAPTIVE)}"),
        "atol": (name in _ADAPTIVE, f"the solvers {', '.join(ADAPTIVE)}"),
        "predictor": (name == "score-sde", "the solver score-sde"),
        "corrector": (name not in _ADAPTIVE, "solvers with a grid"),
        "snr": (corrector != "none", "the correctors langevin and ald"),
        "corrections": (corrector != "none", "the correctors langevin and ald"),
        "norm": (corrector == "langevin" and name != "score-sde", "the corrector langevin"),
        "s_noise": (
            noisy or (planned and "restart" in options),
            f"the solvers that draw noise on a grid: ddim with eta > 0, any with restarts, {', '.join(_NOISY)}",
        ),
        "restart": (planned, "solvers with a grid, but for score-sde and none"),
    }
    for option in options:
        owners = owning(option)
        applies, owner = uses.get(option, (option in own, f"the solver{'s'[: len(owners) - 1]} {', '.join(owners)}"))
        if not applies:
            raise ValueError(f"{option} belongs to {owner}; leave it out with solver {name}")
