"""fastscore langevin: chains of a density that is known, or of a network at one noise level."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.known import MODEL
from fastscore.cli.options import device_option, load, option
from fastscore.cli.types import Count, Name, Number, Out, shorten

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fastscore.chains import Chains
    from fastscore.engine.loop import Step
    from fastscore.model.analytic import GaussianMixture
    from fastscore.model.score import ScoreModel

METHODS = ("ula", "mala", "annealed")
STEPS, LEVEL_STEPS, THIN, TOY_SIGMA = 1000, 100, 10, 0.1


@click.command()
@click.argument("target", type=MODEL)
@click.option("-n", "--num", type=Count(1, 1_000_000), default=64, show_default=True, help="Chains: ids 0 .. n-1.")
@option("--method", Name(METHODS), "ula; mala, which needs a density; annealed, level by level.", "mala / ula")
@option("--step", Number(0, open=True), "h of x + h score + sqrt(2 h) z.", "s^2 / 10, s the narrowest scale")
@option("--steps", Count(1, 1 << 23), "Steps of each chain; of annealed at each level.", f"{STEPS} / {LEVEL_STEPS}")
@option("--thin", Count(1), "Keep every state of this many steps.", THIN)
@option("--burn-in", Count(), "Steps before any state is kept.", 0)
@option("--sigma", Number(0, open=True), "Noise level sigma / alpha.", f"the model's least; {TOY_SIGMA} of points; 0")
@option("--levels", Count(2, 10_000), "Levels of annealed.", 10)
@option("--sigma-min", Number(0, open=True), "Last level of annealed.", 0.01)
@option("--sigma-max", Number(0, open=True), "First level of annealed.", 1)
@click.option("--init", type=click.Path(path_type=Path), help="First states, .npy [1 or n, *shape].  [default: 0]")
@option("--spread", Number(0), "Standard deviation of the noise on the first states.", "1; 0 with --init")
@click.option("--class", "label", type=Count(), help="Class of every chain; the null class if left out.")
@click.option("--seed", type=Count(0, 2**64 - 1), default=0, show_default=True, help="Seed of all noise.")
@click.option("--batch", type=Count(1, 1 << 20), default=1024, show_default=True, help="Chains that run together.")
@device_option
@click.option("--out", type=Out(), required=True, help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace the results of an earlier run in --out.")
@click.option("--quiet", is_flag=True, help="No progress bar, no summary.")
def langevin(target: str, num: int, **options: Any) -> None:
    """Run Langevin chains on TARGET, and write their paths.

    TARGET is analytic:NAME (see `fastscore models`; a set of points is smoothed by --sigma), whose density is exact, or
    a network's folder or bundled name, whose score is taken at one noise level. ula takes every step and is off by
    O(h); mala accepts or rejects and is exact; annealed is NCSN's sequence of noise levels, whose epsilon is --step.

    \b
        fastscore langevin analytic:four-gaussians --method mala --steps 2k --out chains

    Writes samples.npz (samples [n, ..]: last states; states [n, kept, ..]: paths; acceptance [n], of ula and mala),
    grid.png and run.json. A chain is a function of the settings, --seed and its id. In Python: fastscore.chains.
    """
    from fastscore.ops.backend import named_device
    from fastscore.output.chains import reserve_chains, write_chains
    from fastscore.output.commit import begin
    from fastscore.output.record import FILES, Written
    from fastscore.output.run import files, refuse_earlier_run

    annealed = options["method"] == "annealed"
    _refuse_unused(options, annealed)
    refuse_earlier_run(options["out"], options["overwrite"])
    device = named_device(options["device"])
    model = load(target, device)
    if options["label"] is not None and options["label"] >= model.classes:
        raise ValueError(f"--class {options['label']} must be below {model.classes}, the number of the model's classes")
    with begin(options["out"], overwrite=options["overwrite"], planned=Written(FILES)) as stage:

        def reserve(kept: int) -> None:
            reserve_chains(stage, num, kept, model.shape)

        run = _annealed if annealed else _at_one_level
        chains, settings = run(target, model, num, options, device, reserve)
        settings = {"target": target, "num": num, "seed": options["seed"], **settings}
        command = shorten(" ".join(["fastscore", *sys.argv[1:]]), 2000)
        arrays = {} if annealed else {"acceptance": chains.acceptance.cpu().numpy()}
        record = {"command": command, "settings": settings}
        write_chains(stage, chains.x, chains.states, range(num), record, **arrays)
    if not options["quiet"]:
        taken = "" if annealed else f", {float(chains.acceptance.mean()):.3f} of the proposals taken"
        kept = f"{chains.states.shape[1]} states of each kept"
        click.echo(f"{num} chains{taken}, {kept}: {options['out']}/{', '.join(files(options['out']))}")


def _refuse_unused(options: dict[str, Any], annealed: bool) -> None:
    """Raise ValueError for an option that the method would ignore."""
    unused = ("burn_in", "sigma", "init", "spread") if annealed else ("levels", "sigma_min", "sigma_max")
    for name in unused:
        if options[name] is not None:
            owner = "ula and mala" if annealed else "annealed"
            raise ValueError(f"--{name.replace('_', '-')} belongs to --method {owner}; leave it out")


def _at_one_level(
    target: str,
    model: ScoreModel,
    num: int,
    options: dict[str, Any],
    device: torch.device,
    reserve: Callable[[int], None],
) -> tuple[Chains, dict[str, Any]]:
    """Return chains of ULA or MALA, and their settings; room for the states of each is reserved first."""
    from fastscore import chains

    sigma, density, score, t = options["sigma"], None, None, None
    if target.startswith("analytic:"):
        exact, sigma = _smoothed(target, sigma)
        density, score, scale = exact.log_density, exact.score, float(exact.stds.min())
    else:
        score, scale, t = _network_score(model, sigma, options["label"])
    method = options["method"] or ("mala" if density else "ula")
    if method == "mala" and density is None:
        raise ValueError("--method mala needs a density, which a network does not give; use ula, or a TARGET analytic:")
    steps = options["steps"] or STEPS
    burn_in, step = options["burn_in"] or 0, options["step"] or 0.1 * scale**2
    thin = options["thin"] or max(1, min(THIN, steps - burn_in))
    reserve(max(0, steps - burn_in) // thin)
    spread = options["spread"]
    unit = 1.0 if model.transform is None else min(model.transform.scale)
    spread = (unit if options["init"] is None else 0.0) if spread is None else spread
    start = _start(options["init"], model.shape)
    if options["init"] is None and model.transform is not None:
        start = model.transform(start)
    result = chains.run(
        density,
        start,
        step,
        steps,
        range(num),
        options["seed"],
        score=score,
        spread=spread,
        method=method,
        burn_in=burn_in,
        thin=thin,
        progress=not options["quiet"],
        batch=options["batch"],
        device=device,
    )
    settings = {"method": method, "step": step, "steps": steps, "burn_in": burn_in, "thin": thin, "spread": spread}
    settings |= {"init": str(options["init"]) if options["init"] else None, "class": options["label"]}
    return result, settings | ({"sigma": sigma} if t is None else {"t": t, "sigma": scale})


def _smoothed(target: str, sigma: float | None) -> tuple[GaussianMixture, float]:
    """Return the exact density of an analytic target in noise of sigma, and sigma."""
    import torch

    from fastscore.model.analytic import GaussianMixture, target_by_name

    exact = target_by_name(target.removeprefix("analytic:"))
    if isinstance(exact, GaussianMixture):
        sigma = sigma or 0.0
        return GaussianMixture(exact.weights, exact.means, torch.hypot(exact.stds, exact.stds.new_tensor(sigma))), sigma
    sigma, n = sigma or TOY_SIGMA, len(exact.points)
    even = torch.full((n,), 1.0 / n, dtype=torch.float64)
    return GaussianMixture(even, exact.points, torch.full_like(even, sigma)), sigma


def _network_score(
    model: ScoreModel, sigma: float | None, label: int | None
) -> tuple[Callable[[Tensor], Tensor], float, float]:
    """Return the score of a network at a noise level, its sigma / alpha in the narrowest column, and its time."""
    import math

    from fastscore import chains
    from fastscore.process.schedule import lam, t_of_lam

    t = model.schedule.t_end if sigma is None else float(t_of_lam(model.schedule, -math.log(sigma))[0])
    unit = 1.0 if model.transform is None else min(model.transform.scale)
    return chains.level_score(model, t, label), unit * math.exp(-float(lam(model.schedule, t))), t


def _annealed(
    target: str,
    model: ScoreModel,
    num: int,
    options: dict[str, Any],
    device: torch.device,
    reserve: Callable[[int], None],
) -> tuple[Chains, dict[str, Any]]:
    """Return NCSN's annealed chains, and their settings; room for the states of each is reserved first."""
    import torch

    from fastscore.chains import Chains
    from fastscore.sampler import Sampler
    from fastscore.solvers.presets import ncsn

    count = (options["levels"] or 10) * (options["steps"] or LEVEL_STEPS)
    if count > 1 << 23:
        raise ValueError(f"--levels times --steps is {count:,}; at most {1 << 23:,} are taken: take fewer of either")
    given = {k: options[k] for k in ("levels", "sigma_max", "sigma_min")} | {"epsilon": options["step"]}
    preset: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    preset["steps"] = options["steps"] or LEVEL_STEPS
    sampler = Sampler(model, **ncsn(**preset), batch=min(options["batch"], num), device=device)
    assert sampler.plan is not None
    thin = options["thin"] or THIN
    kept = (len(sampler.plan.rows) - 1) // thin
    reserve(kept)
    states = torch.empty(num, kept, *model.shape)

    def keep(step: Step) -> None:
        number, rest = divmod(step.row, thin)
        if number and not rest:
            states[step.ids.cpu(), number - 1] = step.x.cpu()

    extra: Any = {} if options["label"] is None else {"labels": options["label"]}
    x = sampler.run(range(num), options["seed"], callback=keep, progress=not options["quiet"], **extra)
    settings = {"method": "annealed", **preset, "thin": thin, "class": options["label"], "solver": repr(sampler.solver)}
    return Chains(x, torch.ones(num), states), settings


def _start(init: Path | None, shape: tuple[int, ...]) -> Tensor:
    """Return the first states, [1 or n, *shape]."""
    import numpy as np
    import torch

    from fastscore.data.limits import numpy_arrays

    if init is None:
        return torch.zeros(1, *shape)
    arrays = numpy_arrays(init, lambda names: [k for k in names if k in ("", "samples")])
    if not arrays:
        raise ValueError(f"--init {init} holds no array named samples")
    (values,) = arrays.values()
    if values.shape[1:] != shape or values.dtype.kind != "f" or not np.isfinite(values).all():
        expected = ", ".join(map(str, shape))
        raise ValueError(
            f"--init {init} holds {values.dtype} {values.shape}; it must be finite float [1 or n, {expected}]"
        )
    return torch.from_numpy(values)
