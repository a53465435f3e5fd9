"""Posteriors of sbi in 25 evaluations and in sbi's own 500 steps, on the same networks.

    python -m bench.studies.sbi    # results/sbi.md; needs sbi

Two tasks whose exact posterior can be drawn from, and networks of sbi trained for a minute. C2ST is the accuracy of a
classifier that tells two samples of 10,000 draws apart, 0.5 if none can, of gradient-boosted trees with five folds;
the mean of five seeds. Beside the exact posterior, which no trained network has, samples are judged against sbi's own
probability-flow ODE of the network. Each seed draws here and there by turns, and both are timed.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.records import publish
from fastscore import Sampler
from fastscore.adapters import from_sbi
from fastscore.adapters.sbi import sample

DRAWS, SEEDS, STEPS, SIMULATIONS = 10_000, 5, 25, 5_000
KINDS = ("ve", "vp", "flow")  # NPSE, "ve" by sbi's default, and FMPE
Draw = Callable[[int, torch.Generator], Tensor]


def normal(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Return normals, [n, d]."""
    return torch.empty(n, d).normal_(generator=generator)


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Return numbers between two ends, [n]."""
    return torch.empty(n).uniform_(low, high, generator=generator)


def crescent(n: int, generator: torch.Generator) -> Tensor:
    """Return the noise of two moons, [n, 2]."""
    angle = uniform(n, -0.5 * math.pi, 0.5 * math.pi, generator)
    radius = 0.1 + 0.01 * normal(n, 1, generator)[:, 0]
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)


def moons(theta: Tensor, generator: torch.Generator) -> Tensor:
    """Simulate two moons. Source: Greenberg et al. 2019, appendix A.1."""
    a, b = theta[:, 0], theta[:, 1]
    return crescent(len(theta), generator) + torch.stack([-(a + b).abs(), b - a], 1) / math.sqrt(2.0)


def moons_posterior(n: int, generator: torch.Generator) -> Tensor:
    """Draw from the posterior of two moons at x = 0: both solutions of x = p + (-|a + b|, b - a) / sqrt 2."""
    p, sign = crescent(n, generator), torch.sign(uniform(n, -1.0, 1.0, generator))
    total, difference = sign * p[:, 0], -p[:, 1]
    return torch.stack([total - difference, total + difference], 1) / math.sqrt(2.0)


SPREAD, NOISE = torch.tensor([2.0, 0.5]), 0.6  # of the linear Gaussian task: prior N((5, -1), SPREAD^2), x = theta + ..


def linear(theta: Tensor, generator: torch.Generator) -> Tensor:
    """Simulate x = theta + noise."""
    return theta + NOISE * normal(len(theta), 2, generator)


def linear_posterior(n: int, generator: torch.Generator) -> Tensor:
    """Draw from the posterior of the linear Gaussian task at its observation."""
    mean, std = linear_law(TASKS["linear Gaussian"].x[None])
    return mean + std * normal(n, 2, generator)


def linear_law(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the posterior of observations [n, 2] of the same parameters."""
    precision = SPREAD**-2 + len(x) * NOISE**-2
    return (torch.tensor([5.0, -1.0]) * SPREAD**-2 + x.sum(0) * NOISE**-2) / precision, precision**-0.5


@dataclass(frozen=True)
class Task:
    """A simulator, its prior and an observation, and draws from the exact posterior."""

    prior: Any
    simulate: Callable[[Tensor, torch.Generator], Tensor]
    x: Tensor
    exact: Draw


def _priors() -> tuple[Any, Any]:
    box = torch.distributions.Independent(torch.distributions.Uniform(-torch.ones(2), torch.ones(2)), 1)
    return box, torch.distributions.MultivariateNormal(torch.tensor([5.0, -1.0]), torch.diag(SPREAD**2))


TASKS = {
    "two moons": Task(_priors()[0], moons, torch.zeros(2), moons_posterior),
    "linear Gaussian": Task(_priors()[1], linear, torch.tensor([6.0, -0.7]), linear_posterior),
}


def trained(task: Task, kind: str, simulations: int = SIMULATIONS, epochs: int = 50) -> Any:
    """Return a posterior of sbi, trained on simulations of a task."""
    inference = import_module("sbi.inference")
    torch.manual_seed(1)
    theta = task.prior.sample((simulations,))
    x = task.simulate(theta, torch.Generator().manual_seed(1))
    made = import_module("sbi.neural_nets")
    sizes: dict[str, Any] = {"model": "mlp", "hidden_features": 50, "num_layers": 2}
    settings: dict[str, Any] = {"prior": task.prior, "show_progress_bars": False, "tracker": _Silent()}
    if kind == "flow":
        trainer = inference.FMPE(vf_estimator=made.posterior_flow_nn(**sizes), **settings)
    else:
        trainer = inference.NPSE(vf_estimator=made.posterior_score_nn(sde_type=kind, **sizes), **settings)
    estimator = trainer.append_simulations(theta, x).train(training_batch_size=500, max_num_epochs=epochs)
    return trainer.build_posterior(estimator, sample_with="sde")


class _Silent:
    """A tracker that keeps nothing, where sbi's writes logs into the working directory."""

    log_dir = None

    def log_metric(self, *a: Any, **k: Any) -> None:
        """Forget a number."""

    log_metrics = log_params = add_figure = flush = log_metric


def c2st(a: Tensor, b: Tensor) -> float:
    """Return the accuracy with which two samples are told apart, of five folds."""
    trees = import_module("sklearn.ensemble").HistGradientBoostingClassifier(max_iter=40, random_state=0)
    both = torch.cat([a, b])
    points = ((both - both.mean(0)) / both.std(0)).numpy()
    labels = np.repeat([0, 1], [len(a), len(b)])
    folds = import_module("sklearn.model_selection").StratifiedKFold(5, shuffle=True, random_state=0)
    return float(import_module("sklearn.model_selection").cross_val_score(trees, points, labels, cv=folds).mean())


@dataclass
class Result:
    """What seeds gave: seconds, and accuracies against the exact posterior, the network's ODE and the other sampler."""

    seconds: list[tuple[float, float]] = field(default_factory=list)
    exact: list[tuple[float, float]] = field(default_factory=list)
    ode: list[tuple[float, float]] = field(default_factory=list)
    each_other: list[float] = field(default_factory=list)

    @property
    def worse(self) -> float:
        """By how much C2ST is larger here than there, the worse of both references; mean of the seeds."""
        return max(fmean(ours - theirs for ours, theirs in pairs) for pairs in (self.exact, self.ode))

    @property
    def faster(self) -> float:
        """The median of the paired quotients of seconds."""
        return median(theirs / ours for ours, theirs in self.seconds)

    def row(self, name: str, kind: str) -> str:
        """Return a line of the table."""
        accuracies = [fmean(v) for pairs in (self.exact, self.ode) for v in zip(*pairs, strict=True)]
        ours, theirs = (median(v) for v in zip(*self.seconds, strict=True))
        cells = [name, "FMPE" if kind == "flow" else f"NPSE, {kind}"]
        cells += [f"{v:.3f}" for v in (*accuracies, fmean(self.each_other))]
        return f"| {' | '.join([*cells, f'{ours:.2f}', f'{theirs:.2f}', f'{self.faster:.0f}'])} |"


def compared(task: Task, posterior: Any, seeds: int = SEEDS, draws: int = DRAWS, steps: int = 500) -> Result:
    """Draw here and there by turns and judge both."""
    result = Result()
    ode = import_module("sbi.inference.posteriors.vector_field_posterior").VectorFieldPosterior(
        posterior.vector_field_estimator, task.prior, sample_with="ode"
    )
    sample(posterior, (10,), task.x, steps=2)  # what is made on first use
    for seed in range(seeds):
        torch.manual_seed(seed)
        begin = time.perf_counter()
        ours = sample(posterior, (draws,), task.x, steps=STEPS, seed=seed)
        middle = time.perf_counter()
        theirs = posterior.sample((draws,), x=task.x, steps=steps, show_progress_bars=False)
        result.seconds.append((middle - begin, time.perf_counter() - middle))
        exact = task.exact(draws, torch.Generator().manual_seed(seed))
        flow = ode.sample((draws,), x=task.x, show_progress_bars=False).detach()
        result.exact.append((c2st(ours, exact), c2st(theirs, exact)))
        result.ode.append((c2st(ours, flow), c2st(theirs, flow)))
        result.each_other.append(c2st(ours, theirs))
    return result


def exact_posterior(task: Task) -> Any:
    """Return a posterior of sbi for the linear Gaussian task whose score is exact, on its VP levels."""
    estimators = import_module("sbi.neural_nets.estimators.score_estimator")

    class Exact(estimators.VPScoreEstimator):
        def score(self, input: Tensor, condition: Tensor, t: Tensor) -> Tensor:
            precision = SPREAD**-2 + NOISE**-2
            mean = (torch.tensor([5.0, -1.0]) * SPREAD**-2 + condition * NOISE**-2) / precision
            alpha, sigma = self.mean_t_fn(t), self.std_fn(t)
            return (alpha * mean - input) / (alpha**2 / precision + sigma**2)

    shape = torch.Size([2])
    estimator = Exact(torch.nn.Linear(2, 2), shape, shape, mean_0=torch.tensor([5.0, -1.0]), std_0=SPREAD)
    posteriors = import_module("sbi.inference.posteriors.vector_field_posterior")
    return posteriors.VectorFieldPosterior(estimator, task.prior)


IID_SETTINGS: dict[str, dict[str, Any]] = {
    "gauss": {"posterior_precision": SPREAD**-2 + NOISE**-2},
    "jac_gauss": {"ensure_lam_psd": False},
    "auto_gauss": {},
}


def composed(method: str, n: int = 5, draws: int = DRAWS) -> tuple[float, float]:
    """Return how many standard errors mean and standard deviation of an iid posterior are from exact, at worst."""
    task = TASKS["linear Gaussian"]
    x = linear(torch.tensor([[6.0, -0.7]]).expand(n, 2), torch.Generator().manual_seed(3))
    model = from_sbi(exact_posterior(task), x, iid=method, iid_params=IID_SETTINGS[method])
    solver, steps = ("em", 100) if method == "auto_gauss" else ("sa", STEPS)  # its scores are regularised, not smooth
    theta = Sampler(model, solver=solver, steps=steps, batch=1000).run(range(draws))
    mean, std = linear_law(x)
    return (
        float(((theta.mean(0) - mean) / (std / draws**0.5)).abs().max()),
        float(((theta.std(0) - std) / (std / (2.0 * draws) ** 0.5)).abs().max()),
    )


def main() -> None:
    """Run everything and write the tables."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    rows, lines = [], []
    for name, task in TASKS.items():
        for kind in KINDS:
            rows.append(compared(task, trained(task, kind)).row(name, kind))
            print(rows[-1], flush=True)
    for method in IID_SETTINGS:
        lines.append(f"| {method} | " + " | ".join(f"{v:.1f}" for v in composed(method)) + " |")
        print(lines[-1], flush=True)
    publish("sbi", "Posteriors of sbi", page(rows, lines))


def page(rows: list[str], lines: list[str]) -> str:
    """Return the page of these lines."""
    versions = f"sbi {import_module('importlib.metadata').version('sbi')}, torch {torch.__version__}"
    return f"""{(__doc__ or "").split(chr(10) * 2, 2)[2].strip()}

Here: `sample(posterior, (10_000,), x)`, SA-Solver in {STEPS} evaluations, batches of 2000. There: `posterior.sample`,
500 Euler-Maruyama steps, batches of 10,000. One CPU thread, {versions}; medians of five paired runs, in seconds.

| task | network | C2ST to exact: here | sbi | to the ODE: here | sbi | here to sbi | s, here | s, sbi | times faster |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

Five observations of the same parameters, linear Gaussian, with the exact score in place of a network: how many standard
errors of {DRAWS:,} draws the worst mean and the worst standard deviation are from exact. `gauss` is given the precision
of one posterior, `jac_gauss` without sbi's regularisation: both are exact for Gaussians, with SA-Solver in {STEPS}
steps. `auto_gauss`, in 100 Euler-Maruyama steps, estimates that precision by second moments about 0, not about the
mean, which is its own error: sbi's 500 steps have it, too.

| iid | mean | standard deviation |
| --- | --- | --- |
{chr(10).join(lines)}"""


if __name__ == "__main__":
    main()
