"""Published settings by the name of their paper, as options: of ``--preset``, and ``Sampler(model, **preset(name))``.

A preset is nothing but options that could be typed one by one, so that each of them can be another one and the record
of a run says them all. Importing this costs no NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from fastscore.errors import typed
from fastscore.process.names import SETTINGS, listed, named_schedule
from fastscore.solvers.names import is_adaptive, named

if TYPE_CHECKING:
    from fastscore.plan.rows import Solver
    from fastscore.process.grid import Grid, Span
    from fastscore.process.schedule import Schedule
    from fastscore.solvers.adaptive import Adaptive


class Settings(TypedDict):
    """Keyword arguments of Sampler besides the model."""

    schedule: Schedule
    solver: Solver | Adaptive
    grid: Grid | Span


@dataclass(frozen=True)
class Preset:
    """Options of the command line, and where they were published.

    Attributes:
        options: as on the command line, with underscores; what is left out has its default.
        source: the paper, or the file of its code.
        note: what else that source does, or does otherwise.
    """

    options: Mapping[str, Any]
    source: str
    note: str = ""


def annealed(
    levels: int, sigma_max: float, sigma_min: float, epsilon: float, steps: int, denoise: bool
) -> dict[str, Any]:
    """Return NCSN's annealed Langevin dynamics as options: the step of ald is 2 (snr sigma)^2."""
    return {
        "schedule": "smld", "table_steps": levels, "sigma_min": sigma_min, "sigma_max": sigma_max,
        "solver": "none", "corrector": "ald", "snr": math.sqrt(0.5 * epsilon) / sigma_min, "corrections": steps,
        "grid": "uniform", "steps": levels if denoise else levels - 1, "clean": denoise,
    }  # fmt: skip


_VE = {"schedule": "ve", "sigma_min": 0.01}
_VP = {"schedule": "vp", "beta_min": 0.1, "beta_max": 20.0}
_SUBVP = {**_VP, "schedule": "subvp"}
_EDM = {"schedule": "edm", "sigma_min": 0.002, "sigma_max": 80.0, "t_end": 0.002, "clean": True}
_HEUN = {**_EDM, "solver": "heun", "grid": "karras", "rho": 7.0}
_DDPM = {"schedule": "ddpm", "table_steps": 1000, "beta_min": 1e-4, "beta_max": 0.02, "grid": "leading", "clean": True}
_SONG = {"solver": "score-sde", "grid": "uniform", "clean": False}
_LANGEVIN = {**_SONG, "predictor": "reverse-diffusion", "corrector": "langevin", "corrections": 1, "t_end": 1e-5}
_EULER = {**_SONG, "predictor": "euler-maruyama", "steps": 1000, "t_end": 1e-3}
_RK45 = {"solver": "dopri5", "rtol": 1e-5, "atol": 1e-5, "clean": False}
_ODE = "its RK45 has one step for the batch, here each sample has its own; it ends with one denoising step more"
_CLIP = "it also clips the estimate of x0 of images to -1 .. 1, as --clip 1 does"
_UNIT = "data in 0 .. 1; its chains start from uniform noise, which the first levels forget"
_DPM = "betas of continuous time, 0.1 and 20; of a network's own table say --schedule ddpm, which it interpolates"

PRESETS: dict[str, Preset] = {
    "ncsn": Preset(
        annealed(10, 1.0, 0.01, 2e-5, 100, False),
        "Song & Ermon 2019, section 5; ncsnv2, configs/ncsn_original.yml", _UNIT,
    ),
    "ncsnv2-cifar10": Preset(
        annealed(232, 50.0, 0.01, 6.2e-6, 5, True),
        "Song & Ermon 2020, appendix B; ncsnv2, configs/cifar10.yml", _UNIT,
    ),
    "ncsnv2-celeba64": Preset(
        annealed(500, 90.0, 0.01, 3.3e-6, 5, True),
        "Song & Ermon 2020, appendix B; ncsnv2, configs/celeba.yml", _UNIT,
    ),
    "ncsnv2-ffhq256": Preset(
        annealed(2311, 348.0, 0.01, 9e-7, 3, True),
        "Song & Ermon 2020, appendix B; ncsnv2, configs/ffhq.yml", _UNIT,
    ),
    "ddpm-1000": Preset(
        {**_DDPM, "solver": "ddpm", "variance": "large", "steps": 1000},
        "Ho et al. 2020, algorithm 2; diffusion, scripts/run_cifar.py (fixedlarge)", _CLIP,
    ),
    "ddim-50": Preset(
        {**_DDPM, "solver": "ddim", "eta": 0.0, "steps": 50},
        "Song et al. 2021 (DDIM), eq. 12; ddim, runners/diffusion.py (uniform)",
    ),
    "song-ve-cifar10-pc": Preset(
        {**_VE, **_LANGEVIN, "sigma_max": 50.0, "snr": 0.16, "steps": 1000},
        "Song et al. 2021, algorithm 2; score_sde, configs/ve/cifar10_ncsnpp_continuous.py",
    ),
    "song-ve-lsun256-pc": Preset(
        {**_VE, **_LANGEVIN, "sigma_max": 378.0, "snr": 0.075, "steps": 2000},
        "score_sde, configs/default_lsun_configs.py",
    ),
    "song-ve-ffhq1024-pc": Preset(
        {**_VE, **_LANGEVIN, "sigma_max": 1348.0, "snr": 0.15, "steps": 2000},
        "score_sde, configs/ve/ffhq_ncsnpp_continuous.py",
    ),
    "song-vp-cifar10-pc": Preset(
        {**_VP, **_EULER}, "score_sde, configs/vp/cifar10_ddpmpp_continuous.py", "a predictor without a corrector",
    ),
    "song-subvp-cifar10-pc": Preset(
        {**_SUBVP, **_EULER},
        "score_sde, configs/subvp/cifar10_ddpmpp_deep_continuous.py", "a predictor without a corrector",
    ),
    "song-ve-ode": Preset(
        {**_VE, **_RK45, "sigma_max": 50.0, "t_end": 1e-5},
        "Song et al. 2021, section 4.3; score_sde, sampling.py", _ODE,
    ),
    "song-vp-ode": Preset(
        {**_VP, **_RK45, "t_end": 1e-3}, "Song et al. 2021, section 4.3; score_sde, sampling.py", _ODE,
    ),
    "song-subvp-ode": Preset(
        {**_SUBVP, **_RK45, "t_end": 1e-3}, "Song et al. 2021, section 4.3; score_sde, sampling.py", _ODE,
    ),
    "edm-heun-18": Preset(
        {**_HEUN, "steps": 18}, "Karras et al. 2022, algorithm 1; edm, README (CIFAR-10: 35 evaluations)",
    ),
    "edm-heun-40": Preset(
        {**_HEUN, "steps": 40}, "Karras et al. 2022, algorithm 1; edm, README (FFHQ, AFHQv2: 79 evaluations)",
    ),
    "edm-stochastic-imagenet": Preset(
        {**_HEUN, "solver": "edm-churn", "s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003, "steps": 256},
        "Karras et al. 2022, algorithm 2; edm, README (ImageNet 64: 511 evaluations)",
    ),
    "restart-imagenet": Preset(
        {
            **_HEUN, "steps": 36, "s_noise": 1.003,
            "restart": (
                (19.35, 40.79, 3, 1), (1.09, 1.92, 3, 1), (0.59, 1.09, 3, 5), (0.3, 0.59, 3, 5), (0.06, 0.3, 5, 6),
            ),
        },
        "Xu et al. 2023, algorithm 1; diffusion_restart_sampling, README (ImageNet 64: 203 evaluations)",
        "n levels there are n - 1 steps",
    ),
    "dpm-solver-20": Preset(
        {**_VP, "solver": "dpm-fast", "grid": "logsnr", "steps": 20, "t_end": 1e-4, "clean": False},
        "Lu et al. 2022a, section 3.3 and appendix D.2; dpm-solver (singlestep, order 3, logSNR)", _DPM,
    ),
    "dpm-solver++-20": Preset(
        {**_VP, "solver": "dpmpp-2m", "grid": "uniform", "steps": 20, "t_end": 1e-3, "clean": False},
        "Lu et al. 2022b, algorithm 2; dpm-solver, README (multistep, order 2, time_uniform)", _DPM,
    ),
}  # fmt: skip
# Options that belong to a value of another one: they go when that one does.
_OWN = {
    "solver": (
        "rtol", "atol", "eta", "variance", "predictor", "corrector", "snr", "corrections", "s_churn", "s_min", "s_max",
        "s_noise", "restart",
    ),
    "schedule": (*SETTINGS, "t_end"),
    "grid": ("rho",),
}  # fmt: skip


def preset_name(name: str) -> str:
    """Return the name of a preset as it is listed; ValueError for another one, with the nearest."""
    return listed("preset", name, tuple(PRESETS))


def merged(name: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the options of a preset with some in their place, and in words which of its own gave way.

    What belongs to a solver, a schedule or a grid goes with it; steps and grid go with a solver that has none.

    Args:
        name: one of PRESETS.
        given: options in place of its own; None counts as left out.
    """
    own = dict(PRESETS[preset_name(name)].options)
    given = {k: v for k, v in given.items() if v is not None}
    said = [f"{k} = {given[k]} for {v}" for k, v in own.items() if k in given and given[k] != v]
    gone = {one for k, ones in _OWN.items() if k in given and given[k] != own.get(k) for one in ones}
    if is_adaptive(given.get("solver", own["solver"])):
        gone |= {"steps", "grid", "rho"}
    left = [k for k in own if k in gone - given.keys()]
    said += [f"without its {', '.join(left)}"] if left else []
    return {k: v for k, v in own.items() if k not in gone} | given, said


def exact_grid(options: Mapping[str, Any]) -> Grid | Span | None:
    """Return the grid that options spell out, or the span of an adaptive solver; None if they leave a choice."""
    from fastscore.process.grid import Grid, Span

    start, end, clean = (options.get(k) for k in ("t_start", "t_end", "clean"))
    if is_adaptive(options["solver"]):
        return Span(start, end, clean is not False)
    spacing, steps, rho = (options.get(k) for k in ("grid", "steps", "rho"))
    if spacing is None or steps is None:
        return None
    return Grid(spacing, steps, start, end, clean, 7.0 if rho is None else rho)


@typed
def preset(name: str, **changes: Any) -> Settings:
    """Return the settings of a paper, as keyword arguments of Sampler: ``Sampler(model, **preset("edm-heun-18"))``.

    Args:
        name: one of PRESETS, whose numbers and sources stand in solvers/PRESETS.md.
        changes: options in place of its own: of ``named``, of ``named_schedule``, and grid, steps, rho, clean, t_start
            and t_end.

    Raises:
        ValueError: an unknown name; an option that does not fit, or that is none.
    """
    options, _ = merged(name, changes)
    return _settings(options)


def _settings(options: Mapping[str, Any]) -> Settings:
    """Return the schedule, the solver and the grid that options stand for."""
    from fastscore.process.continuous import VP
    from fastscore.solvers.grids import default_grid

    placing = ("steps", "t_start", "t_end", "clean", "rho")
    of_schedule = {k: v for k, v in options.items() if k in SETTINGS and k != "t_end"}
    of_solver = {k: v for k, v in options.items() if k not in ("schedule", "solver", "grid", *placing, *of_schedule)}
    schedule, solver = named_schedule(options["schedule"], VP(), **of_schedule), _named(options["solver"], of_solver)
    grid = exact_grid(options)
    if grid is None:
        rules = {k: options.get(k) for k in ("clean", "rho")} | {"start": options.get("t_start")}
        rules |= {"end": options.get("t_end"), "spacing": options.get("grid")}
        grid = default_grid(solver, schedule, schedule, options.get("steps"), **rules)
    return Settings(schedule=schedule, solver=solver, grid=grid)


def _named(name: str, options: Mapping[str, Any]) -> Any:
    try:
        return named(name, **options)
    except TypeError as error:  # an option that nothing has
        raise ValueError(f"preset: {str(error).removeprefix('named() ')}") from None


@typed
def ncsn(
    levels: int = 10,
    sigma_max: float = 1.0,
    sigma_min: float = 0.01,
    epsilon: float = 2e-5,
    steps: int = 100,
    denoise: bool = False,
) -> Settings:
    r"""Annealed Langevin dynamics with NCSN's settings, which were one for all data sets.

    At each of ``levels`` geometric sigmas, ``steps`` times

        x <- x + alpha_i score + sqrt(2 alpha_i) z,   alpha_i = epsilon sigma_i^2 / sigma_L^2

    which is NCSNv2's algorithm 1 and what the code of both papers does. Algorithm 1 of the first paper
    is printed with alpha_i / 2 in place of alpha_i: its text is half this epsilon. Our runs start from
    N(0, sigma_1^2 I), theirs from uniform noise, which ``levels`` this coarse forget. Data lie in [0, 1].

    Args:
        levels: L. sigma_max, sigma_min: sigma_1 and sigma_L. epsilon: their step size. steps: T.
        denoise: end with x + sigma_L^2 score, one evaluation more.

    Raises:
        ValueError: fewer than two levels, or an epsilon or steps that are not positive.

    Source: Song & Ermon 2019, section 5; score_sde calls the same step snr = 0.316.
    """
    if levels < 2 or not 0.0 < sigma_min < sigma_max or not 0.0 < epsilon < math.inf:
        raise ValueError(
            f"levels = {levels} must be at least 2, sigma_min = {sigma_min} and sigma_max = {sigma_max} positive and "
            f"rising, epsilon = {epsilon} positive (2e-5 is NCSN's, 6.2e-6 NCSNv2's on CIFAR-10)"
        )
    return _settings(annealed(levels, sigma_max, sigma_min, epsilon, steps, denoise))


@typed
def ncsnv2(
    levels: int = 232,
    sigma_max: float = 50.0,
    sigma_min: float = 0.01,
    epsilon: float = 6.2e-6,
    steps: int = 5,
    denoise: bool = True,
) -> Settings:
    """Annealed Langevin dynamics with NCSNv2's settings for CIFAR-10, and its last denoising step.

    As ``ncsn``, whose arguments these are. For CelebA 64x64 the paper has levels = 500, sigma_max = 90,
    epsilon = 3.3e-6. Source: Song & Ermon 2020, algorithm 1 and appendix B; snr = 0.176 in score_sde.
    """
    return ncsn(levels, sigma_max, sigma_min, epsilon, steps, denoise)
