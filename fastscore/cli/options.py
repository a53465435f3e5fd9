"""Options that commands share, and how they become a schedule, a solver, a grid, a device.

What the names stand for, which of them go together and what is said when they do not is the library's: see
process/names.py and solvers/names.py. An option that was left out is None, and the library chooses.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.known import PresetName
from fastscore.cli.types import Count, GridName, Interval, Name, Number, Restarted, SolverName, shorten
from fastscore.errors import nearest
from fastscore.process.names import SCHEDULES, SETTINGS, TUNED
from fastscore.solvers import names as n
from fastscore.solvers.presets import PRESETS, exact_grid

if TYPE_CHECKING:
    import torch

    from fastscore.guidance.denoiser import Guide
    from fastscore.model.score import ScoreModel
    from fastscore.plan.rows import Solver
    from fastscore.process.grid import Grid, Span, Times
    from fastscore.process.schedule import Schedule
    from fastscore.solvers.adaptive import Adaptive

# Words of modules that need torch or NumPy, which no --help is to wait for.
NETWORKS = ("auto", "own", "fp32", "tf32", "bf16", "compile", "regional")
GRAPHS = ("auto", "off", "step", "loop")
GUIDED = ("auto", "serial", "batched")
RULES = ("cfg", "cfg++")
BACKENDS = ("auto", "reference", "cpp", "triton")
NORMS = ("sample", "batch", "expected", "tutorial")
VARIANCES = ("small", "large")


def option(flag: str, kind: click.ParamType, text: str, default: Any = None) -> Callable[..., Any]:
    """Return an option that is None if it is left out, with the library's default in its help."""
    # EDM's flags have underscores; both spellings work.
    spellings = dict.fromkeys((flag, "--" + flag[2:].replace("-", "_")))
    return click.option(*spellings, type=kind, help=text if default is None else f"{text}  [default: {default}]")


def solver_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose schedule, solver and grid."""
    options = [
        click.option(
            "--preset",
            type=PresetName(tuple(PRESETS)),
            help="Schedule, solver and grid of a paper: edm-heun-18, song-ve-cifar10-pc, ddpm-1000, ..; see "
            "fastscore/solvers/PRESETS.md. Other options replace its own.",
        ),
        click.option(
            "--solver",
            type=SolverName(n.SOLVERS),
            default=n.DEFAULT,
            show_default=True,
            help="How to step: dpmpp-2m, heun, unipc, em, dopri5, ..; see fastscore/solvers/README.md; or a name of "
            "ComfyUI, A1111, k-diffusion or diffusers ('DPM++ 2M Karras'). `fastscore plan` prints what it does.",
        ),
        option(
            "--steps",
            Count(1, 1_000_000),
            "Steps of the solver; 1000 of score-sde, and as many as there are if a table is shorter.",
            n.STEPS,
        ),
        option("--rtol", Number(0, 9, open=True), f"Relative tolerance of {', '.join(n.ADAPTIVE)}."),
        option("--atol", Number(0, 9, open=True), "Absolute tolerance of the same, on x."),
        option("--schedule", Name(SCHEDULES), "Forward SDE; the model's own if left out."),
        option(
            "--grid",
            GridName(()),
            "Rule that spaces the times: karras, arctan, uniform, beta, kl-optimal, ..; see "
            "fastscore/process/README.md; or tuned, fitted to the model. Suits solver and schedule if left out.",
        ),
        click.option(
            "--clean/--no-clean", default=None, help="Whether the last step goes to sigma = 0.  [default: yes]"
        ),
        option("--t-start", Number(), "First time; the schedule's T if left out."),
        option("--t-end", Number(), "Last time before sigma = 0; the schedule's own if left out."),
        schedule_options,
        option("--rho", Number(0.1, 1000), "Exponent of the grids karras, arctan and polyexponential.", n.RHO),
        option(
            "--eta",
            Number(0, 1000),
            "Noise of ddim (0 .. 1), and of solvers that draw some: em, sa, dpmpp-2m-sde, euler-ancestral, ..; any "
            "other solver names them.",
        ),
        option(
            "--eta-window",
            Interval("0.05,50", levels=True),
            "Levels sigma / alpha at which steps start that have this noise; the others have none.",
        ),
        option("--s-churn", Number(0), "S_churn of edm-churn, by which each step goes back.", 40),
        option("--s-min", Number(0), "Lowest level of edm-churn's noise.", 0.05),
        option("--s-max", Number(0), "Highest level of edm-churn's noise.", 50),
        option("--s-noise", Number(0, 1000), "Factor on the noise of each step, of solvers that draw some."),
        click.option(
            "--restart",
            type=Restarted(),
            multiple=True,
            callback=lambda context, parameter, value: value or None,
            help="At sigma / alpha = LOW back up to HIGH by fresh noise and down again in STEPS, TIMES times: Restart, "
            "around any solver with a grid; may be given more than once.",
        ),
        option("--order", Count(1, 4), f"Order of {', '.join(n.owning('order'))}; of others it is part of the name."),
        option("--prediction", Name(("x0", "eps")), f"What {' and '.join(n.owning('prediction'))} extrapolate."),
        option("--variance", Name(VARIANCES), "Variance of ddpm and ancestral steps.", n.VARIANCE),
        option("--corrector", Name(n.CORRECTORS), "Langevin steps at each time.", "none"),
        option("--snr", Number(0, 1000, open=True), "Signal-to-noise ratio of the corrector.", n.SNR),
        option("--corrections", Count(1, 10_000), "Corrector steps a time.", n.CORRECTIONS),
        option("--norm", Name(NORMS), "Norms of the Langevin step.", n.NORM),
        option("--predictor", Name(n.PREDICTORS), "Predictor of --solver score-sde.", n.PREDICTOR),
        option("--clip", Number(0, open=True), "Bound on the x0 estimate of each step."),
    ]
    for decorate in reversed(options):
        command = decorate(command)
    return command


def rule_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option that says how guidance enters a step."""
    text = "How guidance enters a step: cfg, or cfg++, whose weights lie in 0 .. 1; that of the solver if left out."
    return option("--guidance-rule", Name(RULES), text)(command)


def schedule_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that change a schedule, named or the model's own; all else of it stays."""
    kinds: dict[str, tuple[click.ParamType, str]] = {
        "sigma_min": (Number(0, open=True), "Lowest noise of"),
        "sigma_max": (Number(0, open=True), "Highest noise of"),
        "beta_min": (Number(0, open=True), "Noise rate at t = 0, or first beta, of"),
        "beta_max": (Number(0, open=True), "Noise rate at t = 1, or last beta, of"),
        "base": (Number(1, open=True), "dx = base^t dw of"),
        "shift": (Number(0, open=True), "Factor of Stable Diffusion 3 on sigma / alpha, for"),
        "table_steps": (Count(1, 1_000_000), "Steps T, or number of noise levels, of"),
    }
    for name, (kind, text) in reversed(kinds.items()):
        command = option(f"--{name.replace('_', '-')}", kind, f"{text} {', '.join(SETTINGS[name])}.")(command)
    text = f"Whether the table ends at pure noise, of {', '.join(SETTINGS['zero_snr'])}."
    return click.option("--zero-snr/--no-zero-snr", default=None, help=text)(command)


def schedule_end_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --t-end of a command that makes a schedule and no grid: the schedule's own last time."""
    text = f"Last time before sigma = 0 (eps of Song et al.) of {', '.join(SETTINGS['t_end'])}."
    return click.option("--t-end", "--t_end", "schedule_t_end", type=Number(), help=text)(command)


def device_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option that says where a command computes."""
    text = "cpu, cuda or cuda:N; auto is CUDA if there is one."
    return click.option("--device", default="auto", show_default=True, help=text)(command)


def make_schedule(options: dict[str, Any], default: Schedule) -> Schedule:
    """Return the schedule of the options."""
    from fastscore.process.names import named_schedule

    # --t-end of a command with a grid is the grid's.
    settings = {k: options[k] for k in SETTINGS if k != "t_end"} | {"t_end": options.get("schedule_t_end")}
    return named_schedule(options["schedule"], default, **settings)


def make_solver(options: dict[str, Any]) -> Solver | Adaptive:
    """Return the solver of the options."""
    of_solver = (
        "eta", "eta_window", "variance", "rtol", "atol", "predictor", "corrector", "snr", "corrections", "norm",
        "s_churn", "s_min", "s_max", "s_noise", "restart", "order", "prediction",
    )  # fmt: skip
    return n.named(options["solver"], **{k: options[k] for k in of_solver})


def make_grid(
    options: dict[str, Any],
    solver: Solver | Adaptive,
    schedule: Schedule,
    model: ScoreModel | None = None,
    guide: Guide | None = None,
) -> Grid | Times | Span | str:
    """Return the grid of the options, the rest as a sampler chooses it; or the span of an adaptive solver.

    A fitted grid is the sampler's to find, by its name.
    """
    steps = options["steps"]
    rules = {"spacing": "grid", "start": "t_start", "end": "t_end", "clean": "clean", "rho": "rho"}
    rules = {rule: options[name] for rule, name in rules.items()}
    if options["grid"] == TUNED:
        for name in ("t_start", "t_end", "clean", "rho"):
            if options[name] is not None:
                raise ValueError(f"--{name.replace('_', '-')} changes a rule; leave it out with --grid {TUNED}")
        return TUNED
    if options.get("preset") and (exact := exact_grid(options)) is not None:
        return exact
    rules["spacing"] = rules["spacing"] or n.grid_of(options["solver"])
    if model is None:  # no network, so no torch
        from fastscore.solvers.grids import default_grid

        return default_grid(solver, schedule, schedule, steps, **rules)
    from fastscore.engine.bind import fitting

    return fitting(model, schedule, solver, steps=steps, guide=guide, **rules)


def load(name: str, device: torch.device) -> ScoreModel:
    """Load a bundled model, a model directory, a folder of diffusers, or analytic:NAME."""
    if name.startswith("analytic:"):
        from fastscore.model.analytic import by_name

        return by_name(name.removeprefix("analytic:"))
    if (Path(name) / "model_index.json").is_file():
        from fastscore.adapters.diffusers import from_diffusers

        return from_diffusers(name, solver=n.DEFAULT, device=device)[0]
    from fastscore.model.folder import BUNDLED, bundled, load_model

    if not any(os.path.lexists(place / name / "config.json") for place in (BUNDLED, Path())):
        from fastscore.model.analytic import NAMES

        exact = [f"analytic:{one}" for one in NAMES]
        raise ValueError(
            f"model {shorten(name)!r}{nearest(name, [*bundled(), *exact])} is neither a bundled model "
            f"({', '.join(bundled())}) nor a folder with a config.json, nor analytic:NAME; see `fastscore models`"
        )
    return load_model(name, device)


def value_range(model: ScoreModel) -> tuple[float, float] | None:
    """Return (black, white) of the images that a model was trained on, if they were not of 8 bits."""
    known = model.info.get("value_range")
    return (float(known[0]), float(known[1])) if known else None
