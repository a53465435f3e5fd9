"""What the commands share: names of schedules, solvers and grids, and what they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.types import Count, Name, Number, shorten

if TYPE_CHECKING:
    from fastscore.model.score import ScoreModel
    from fastscore.plan.rows import Solver
    from fastscore.process.grid import Grid, Span
    from fastscore.process.schedule import Schedule
    from fastscore.solvers.adaptive import Adaptive

SCHEDULES = (
    "vp",
    "subvp",
    "ve",
    "edm",
    "flow",
    "vp-cosine",
    "vp-exponential",
    "tutorial",
    "ddpm",
    "ddpm-cosine",
    "smld",
)
# The levels of Karras et al. suit the first group, even times the second.
ON_LEVELS = (
    "dpmpp-2m", "ddim", "euler", "heun", "midpoint", "rk4", "implicit-midpoint", "edm-churn",
    "dpm-1", "dpm-2", "dpm-3", "dpm-2m", "dpm-3m", "dpmpp-2s", "dpmpp-3s", "dpmpp-3m", "deis", "lms", "unipc",
    "sa", "dpm-2-ancestral", "dpmpp-2s-ancestral", "dpmpp-sde", "dpmpp-2m-sde", "dpmpp-3m-sde",
)  # fmt: skip
ON_TIMES = ("ddpm", "ancestral", "em", "reverse-diffusion", "heun-sde", "pndm", "plms", "ipndm", "none", "score-sde")
ADAPTIVE = ("dopri5", "bs32", "dpm12", "dpm23", "ggf")
SOLVERS = ON_LEVELS + ON_TIMES + ADAPTIVE
CORRECTORS = ("none", "langevin", "ald")
GRIDS = ("uniform", "quadratic", "logsnr", "karras", "leading", "trailing", "linspace")
NORMS = ("sample", "batch", "expected")


# Recommended for 5 to 1000 steps by bench/work_precision.py, and what Sampler takes by itself.
DEFAULT_SOLVER = "dpmpp-2m"


def solver_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose schedule, solver and grid."""
    predictors = ("euler-maruyama", "reverse-diffusion", "ancestral-sampling", "none")
    options = [
        _option("--solver", Name(SOLVERS), "Sampler or predictor.", DEFAULT_SOLVER),
        _option("--steps", Count(1, 1_000_000), "Steps of the solver.", 20),
        _option("--rtol", Number(0, 9, open=True), f"Relative tolerance of {', '.join(ADAPTIVE)}."),
        _option("--atol", Number(0, 9, open=True), "Absolute tolerance of the same, on x."),
        _option("--schedule", Name(SCHEDULES), "Forward SDE; the model's own if left out."),
        _option("--grid", Name(GRIDS), "Spacing of times; suits solver and schedule if left out."),
        click.option(
            "--clean/--no-clean", default=None, help="Whether the last step goes to sigma = 0.  [default: yes]"
        ),
        _option("--t-start", Number(), "First time; the schedule's T if left out."),
        _option("--t-end", Number(), "Last time before sigma = 0; the schedule's own if left out."),
        _option("--sigma-min", Number(0, open=True), "Of ve, edm and smld."),
        _option("--sigma-max", Number(0, open=True), "Of ve, edm and smld."),
        _option("--rho", Number(0.1, 1000), "Exponent of the karras grid.", 7.0),
        _option("--eta", Number(0, 1000), "Noise of ddim (0 .. 1) and em (0 is the ODE)."),
        _option("--variance", Name(("small", "large")), "Of ddpm and ancestral.", "small"),
        _option("--corrector", Name(CORRECTORS), "Langevin steps at each time.", "none"),
        _option("--snr", Number(0, 1000, open=True), "Signal-to-noise ratio of the corrector.", 0.16),
        _option("--corrections", Count(1, 10_000), "Corrector steps a time.", 1),
        _option("--norm", Name(NORMS), "Norms of the Langevin step.", "sample"),
        _option("--predictor", Name(predictors), "Of --solver score-sde.", "reverse-diffusion"),
        _option("--clip", Number(0, open=True), "Bound on the x0 estimate of each step."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _option(flag: str, kind: click.ParamType, text: str, default: Any = None) -> Callable[..., Any]:
    # EDM's flags have underscores; both spellings work.
    spellings = dict.fromkeys((flag, "--" + flag[2:].replace("-", "_")))
    return click.option(*spellings, type=kind, default=default, show_default=default is not None, help=text)


def make_schedule(name: str | None, sigma_min: float | None, sigma_max: float | None, own: Schedule) -> Schedule:
    """Return the schedule of a name, or ``own`` if there is none; VP for an exact model, which fits all.

    Raises:
        ValueError: a noise bound for a schedule that has none.
    """
    from fastscore.process import beta as b
    from fastscore.process import continuous as s
    from fastscore.process import discrete as tables

    bounds = {k: v for k, v in (("sigma_min", sigma_min), ("sigma_max", sigma_max)) if v is not None}
    if name is None and isinstance(own, s.EDM | s.VE):
        return type(own)(**{"sigma_min": own.sigma_min, "sigma_max": own.sigma_max, **bounds})
    bounded: dict[str, Callable[..., Schedule]] = {"ve": s.VE, "edm": s.EDM, "smld": tables.smld}
    if name in bounded:
        return bounded[name](**bounds)
    if bounds:
        flag = "--" + next(iter(bounds)).replace("_", "-")
        raise ValueError(f"{flag} belongs to the schedules ve, edm and smld, not {name or type(own).__name__}")
    if name is None and not isinstance(own, s.Trig):
        return own
    plain: dict[str, Callable[[], Schedule]] = {
        "vp": s.VP,
        "subvp": s.SubVP,
        "flow": s.Flow,
        "vp-cosine": lambda: s.VP(b.CosineBeta()),
        "vp-exponential": lambda: s.VP(b.ExponentialBeta()),
        "tutorial": s.TutorialVE,
        "ddpm": tables.discrete_vp,
        "ddpm-cosine": lambda: tables.discrete_vp("cosine"),
    }
    return plain[name or "vp"]()


def make_solver(o: dict[str, Any]) -> Solver | Adaptive:
    """Return the solver that the options name.

    Raises:
        ValueError: options that do not go together.
    """
    from fastscore import solvers as s

    name, eta = o["solver"], o["eta"]
    _refuse_unused(o)
    if name in ADAPTIVE:
        return make_adaptive(o)
    corrector = {
        "none": None,
        "langevin": s.Langevin(o["snr"], o["corrections"], "batch" if name == "score-sde" else o["norm"]),
        "ald": s.AnnealedLangevin(o["snr"], o["corrections"]),
    }[o["corrector"]]
    if name == "score-sde":
        return s.ScoreSDE(o["predictor"].replace("-", "_"), corrector)
    if name == "none" and corrector is None:
        raise ValueError("--solver none needs a corrector: --corrector langevin or ald")
    makers: dict[str, Callable[[], Solver | None]] = {
        "dpmpp-2m": s.DPMpp2M,
        "ddim": lambda: s.DDIM(eta or 0.0),
        "ddpm": lambda: s.Ancestral(o["variance"]),
        "ancestral": lambda: s.Ancestral(o["variance"]),
        "em": lambda: s.EulerMaruyama(1.0 if eta is None else eta),
        "reverse-diffusion": s.ReverseDiffusion,
        "euler": s.Euler,
        "heun": s.Heun,
        "heun-sde": s.StochasticHeun,
        "midpoint": s.RK2,
        "rk4": s.RK4,
        "implicit-midpoint": s.ImplicitMidpoint,
        "edm-churn": s.Churn,
        "dpm-1": lambda: s.DPMSolver(1),
        "dpm-2": lambda: s.DPMSolver(2),
        "dpm-3": lambda: s.DPMSolver(3),
        "dpm-2m": lambda: s.DPMMultistep(2, "eps", "paper"),
        "dpm-3m": lambda: s.DPMMultistep(3, "eps"),
        "dpm-2-ancestral": lambda: s.AncestralSplit(s.DPMSolver(2)),
        "dpmpp-2s": lambda: s.DPMSolver(2, "x0"),
        "dpmpp-3s": lambda: s.DPMSolver(3, "x0"),
        "dpmpp-3m": lambda: s.DPMMultistep(3),
        "dpmpp-2s-ancestral": lambda: s.AncestralSplit(s.DPMSolver(2, "x0")),
        "dpmpp-sde": lambda: s.DPMSolver(2, "x0", 1.0),
        "dpmpp-2m-sde": lambda: s.DPMMultistep(2, "x0", "paper", 1.0),
        "dpmpp-3m-sde": lambda: s.DPMMultistep(3, "x0", "exact", 1.0),
        "deis": s.DEIS,
        "lms": s.LMS,
        "unipc": s.UniPC,
        "sa": s.SASolver,
        "pndm": s.PNDM,
        "plms": lambda: s.PNDM(prk=False),
        "ipndm": s.IPNDM,
        "none": lambda: None,
    }
    solver = makers[name]()
    if corrector is not None:
        return s.PredictorCorrector(solver, corrector)
    assert solver is not None
    return solver


def make_adaptive(o: dict[str, Any]) -> Adaptive:
    """Return the adaptive solver that --solver names, with the tolerances given."""
    from fastscore import solvers as s

    makers: dict[str, Callable[..., Adaptive]] = {
        "dopri5": s.Dopri5,
        "bs32": s.BogackiShampine,
        "dpm12": partial(s.DPMAdaptive, 2),
        "dpm23": partial(s.DPMAdaptive, 3),
        "ggf": s.GottaGoFast,
    }
    return makers[o["solver"]](**{k: o[k] for k in ("rtol", "atol") if o[k] is not None})


def _refuse_unused(o: dict[str, Any]) -> None:
    """Raise ValueError for an option that was given and that these settings would ignore."""
    solver, corrects = o["solver"], o["corrector"] != "none"
    steps = solver not in ADAPTIVE
    uses = {
        **{k: (steps, "solvers with a grid") for k in ("steps", "grid", "corrector", "clip")},
        **{k: (not steps, f"the solvers {', '.join(ADAPTIVE)}") for k in ("rtol", "atol")},
        "eta": (solver in ("ddim", "em"), "the solvers ddim and em"),
        "variance": (solver in ("ddpm", "ancestral"), "the solvers ddpm and ancestral"),
        "predictor": (solver == "score-sde", "--solver score-sde"),
        "snr": (corrects, "--corrector langevin and ald"),
        "corrections": (corrects, "--corrector langevin and ald"),
        "rho": (steps and o["grid"] in (None, "karras"), "--grid karras"),
        "norm": (o["corrector"] == "langevin" and solver != "score-sde", "--corrector langevin"),
    }
    context = click.get_current_context()
    for option, (used, owner) in uses.items():
        if not used and context.get_parameter_source(option) == click.core.ParameterSource.COMMANDLINE:
            raise ValueError(f"--{option} belongs to {owner}; leave it out with --solver {solver}")


def make_grid(o: dict[str, Any], schedule: Schedule, own: Schedule) -> Grid | Span:
    """Return the grid that the options name, or the span of an adaptive solver; the default suits the solver.

    Solvers of ON_TIMES and correctors get even times, as in their papers; the others get
    Karras levels, or even times where the first one is pure noise. EDM's time is sigma itself, which
    even steps do not suit. Tables get trailing indices, unless the network's ``own`` schedule has less
    noise than the last of them.
    """
    from fastscore.process.continuous import EDM
    from fastscore.process.discrete import DiscreteVE, DiscreteVP
    from fastscore.process.grid import Grid, Span
    from fastscore.process.schedule import lam

    spacing, clean = o["grid"], o["clean"]
    if o["solver"] in ADAPTIVE:
        return Span(o["t_start"], o["t_end"], clean is not False)
    if spacing is None:
        even = o["solver"] in ON_TIMES or o["corrector"] != "none" or o["eta"]
        first = schedule.T if o["t_start"] is None else o["t_start"]
        table = isinstance(schedule, DiscreteVP | DiscreteVE)
        if table and lam(schedule, schedule.T) >= lam(own, own.T):
            spacing = "trailing"
        elif table or isinstance(schedule, EDM) or (not even and math.isfinite(float(lam(schedule, first)))):
            spacing = "karras"
        else:
            spacing = "uniform"
    if clean is None:
        clean = o["solver"] != "score-sde"
    return Grid(spacing, o["steps"], o["t_start"], o["t_end"], clean, o["rho"])


def checked_device(name: str) -> str:
    """Return the name of a device that is there.

    Raises:
        ValueError: another kind of device, or none of that number.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {shorten(name)!r} must be cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {shorten(name)!r} must be cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return name


def load(name: str, device: str = "cpu") -> ScoreModel:
    """Load a bundled model, a model directory, or analytic:NAME."""
    if name.startswith("analytic:"):
        from fastscore.model.analytic import by_name

        return by_name(name.removeprefix("analytic:"))
    from fastscore.model.folder import load_model

    return load_model(name, device)
