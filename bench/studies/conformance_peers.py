"""Others' samplers as ``check`` takes them: a function of (net, n, seed, steps), with what each declares of itself."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

import fastscore as fs
from bench.peers import versioned

TABLE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
LOW, HIGH = 0.02, 80.0  # levels of sigma that leave a spread of 0.3 as it is


@dataclass(frozen=True)
class Peer:
    """A sampler of a library, its schedule and what it declares."""

    library: str
    name: str
    fn: Callable[..., Any]
    schedule: Any
    options: dict[str, Any] = field(default_factory=dict)


def diffusers() -> list[Peer]:
    """Return schedulers, stepped by the loop of their documentation, on a table or on a flow."""
    import diffusers as d

    def sampler(kind: Any, **config: Any) -> Callable[..., Any]:
        def run(net: Any, n: int, seed: int, steps: int) -> Any:
            scheduler = kind(**config)
            scheduler.set_timesteps(steps)
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(n, *net.shape, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
            takes = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
            for t in scheduler.timesteps:
                scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
                x = scheduler.step(net(scaled, t), t, x, **takes).prev_sample
            return x

        return run

    own = versioned("diffusers")
    spaced = {**TABLE, "timestep_spacing": "trailing"}
    unclipped = {"clip_sample": False}
    # 25, 50 and 100 steps divide the table's 1000; 32, 64 and 128 do not.
    table: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = [
        ("DDIM, 32 steps", d.DDIMScheduler, {**spaced, **unclipped}, {"exact_on_point": True, "steps": 32}),
        ("DDIM", d.DDIMScheduler, {**spaced, **unclipped}, {"exact_on_point": True}),
        ("DDIM, linspace", d.DDIMScheduler, {**TABLE, **unclipped, "timestep_spacing": "linspace"},
         {"exact_on_point": True}),
        ("DDIM, clip_sample as by default", d.DDIMScheduler, spaced, {}),
        ("DDPM", d.DDPMScheduler, {**spaced, **unclipped}, {"stochastic": True}),
        ("DPM++ 2M", d.DPMSolverMultistepScheduler, spaced, {"exact_on_point": True}),
        ("DPM++ 3M", d.DPMSolverMultistepScheduler, {**spaced, "solver_order": 3}, {"exact_on_point": True}),
        ("SDE-DPM++ 2M", d.DPMSolverMultistepScheduler, {**spaced, "algorithm_type": "sde-dpmsolver++"},
         {"stochastic": True}),
        ("SDE-DPM++ 3M, Karras, declared 2", d.DPMSolverMultistepScheduler,
         {**TABLE, "solver_order": 3, "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
         {"stochastic": True, "order": 2.0}),
        ("DPM++ 2S", d.DPMSolverSinglestepScheduler, {**TABLE, "solver_order": 2}, {"exact_on_point": True}),
        ("UniPC", d.UniPCMultistepScheduler, spaced, {"exact_on_point": True}),
        ("DEIS", d.DEISMultistepScheduler, spaced, {"exact_on_point": True}),
        ("DEIS, Karras", d.DEISMultistepScheduler, {**TABLE, "use_karras_sigmas": True}, {}),
        ("SA-Solver", d.SASolverScheduler, spaced, {"stochastic": True}),
        ("SA-Solver, Karras", d.SASolverScheduler, {**TABLE, "use_karras_sigmas": True}, {"stochastic": True}),
        ("PNDM", d.PNDMScheduler, {**spaced, "skip_prk_steps": True}, {}),
        ("Euler", d.EulerDiscreteScheduler, spaced, {"exact_on_point": True}),
        ("Euler ancestral", d.EulerAncestralDiscreteScheduler, spaced, {"stochastic": True}),
        ("Heun", d.HeunDiscreteScheduler, spaced, {}),
        ("KDPM2", d.KDPM2DiscreteScheduler, spaced, {}),
        ("KDPM2 ancestral", d.KDPM2AncestralDiscreteScheduler, spaced, {"stochastic": True}),
        ("LMS", d.LMSDiscreteScheduler, spaced, {}),
    ]  # fmt: skip
    peers = [Peer(own, name, sampler(kind, **c), fs.discrete_vp(), {"steps": 25, **o}) for name, kind, c, o in table]
    flow = {"prediction": "flow", "label": lambda t: 1000.0 * t}
    for name, config, options in (
        ("flow-match Euler", {}, {"knots": _flow_knots(1.0)}),
        ("flow-match Euler, shift 3", {"shift": 3.0}, {"knots": _flow_knots(3.0)}),
    ):
        run = sampler(d.FlowMatchEulerDiscreteScheduler, **config)
        peers.append(Peer(own, name, run, fs.Flow(), {**flow, **options}))
    peers.append(Peer(own, "flow-match Heun", sampler(d.FlowMatchHeunDiscreteScheduler), fs.Flow(), flow))
    return peers


def _flow_knots(shift: float) -> Callable[[int], list[float]]:
    """Return the levels of a flow from 1 to 1/1000 and 0, shifted once."""

    def knots(n: int) -> list[float]:
        even = torch.linspace(1.0, 1e-3, n, dtype=torch.float64).tolist()
        return [shift * t / (1.0 + (shift - 1.0) * t) for t in even] + [0.0]

    return knots


def k_diffusion() -> list[Peer]:
    """Return its functions of a denoiser and levels, with randomness from the global generator, as they have it."""
    from bench.peers.k_diffusion import sampling

    k, schedule = sampling(), fs.EDM(LOW, HIGH)

    def sampler(name: str, **options: Any) -> Callable[..., Any]:
        def run(net: Any, n: int, seed: int, steps: int) -> Any:
            torch.manual_seed(seed)
            levels = k.get_sigmas_karras(steps, LOW, HIGH)
            x = torch.randn(n, *net.shape) * levels[0]
            if name.endswith("sde"):  # their Brownian tree takes minutes at thousands of samples
                options["noise_sampler"] = lambda *levels: torch.randn_like(x)
            return getattr(k, f"sample_{name}")(lambda x, sigma: net(x, sigma), x, levels, disable=True, **options)

        return run

    noisy = {"stochastic": True}
    table: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("euler", {}, {"exact_on_point": True}),
        ("euler_ancestral", {}, noisy),
        ("heun", {}, {"order": 2.0}),
        ("dpm_2", {}, {"order": 2.0}),
        ("dpm_2_ancestral", {}, noisy),
        ("lms", {}, {"order": 3.0}),
        ("dpmpp_2s_ancestral", {}, noisy),
        ("dpmpp_sde", {}, noisy),
        ("dpmpp_2m", {}, {"order": 2.0, "exact_on_point": True}),
        ("dpmpp_2m_sde", {}, noisy),
        ("dpmpp_3m_sde", {}, noisy),
    ]
    return [
        Peer(versioned("k-diffusion"), name, sampler(name, **c), schedule, {"prediction": "x0", **o})
        for name, c, o in table
    ]


def azula() -> list[Peer]:
    """Return its samplers of a denoiser on a VE schedule, which end at sigma_min."""
    import azula.sample as s
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VESchedule

    class Exact(Denoiser):
        def __init__(self, net: Any) -> None:
            super().__init__()
            self.net, self.schedule = net, VESchedule(LOW, HIGH)

        def forward(self, x_t: Any, t: Any, **kwargs: Any) -> Any:
            return DiracPosterior(mean=self.net(x_t, self.schedule.sigma(t)))

    def sampler(kind: Any, **config: Any) -> Callable[..., Any]:
        def run(net: Any, n: int, seed: int, steps: int) -> Any:
            torch.manual_seed(seed)
            sample = kind(Exact(net), steps=steps, silent=True, **config)
            return sample(HIGH * torch.randn(n, *net.shape))

        return run

    table: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("DDIMSampler", {}, {"exact_on_point": True}),
        ("DDPMSampler", {}, {"stochastic": True}),
        ("EulerSampler", {}, {}),
        ("HeunSampler", {}, {"order": 2.0}),
        ("ItoSampler", {}, {"stochastic": True}),
        ("vABSampler", {}, {"order": 2.0}),
        ("xEABSampler", {}, {"order": 2.0}),
        ("zABSampler", {}, {"order": 2.0}),
        ("zEABSampler", {}, {"order": 2.0}),
        ("REABSampler", {}, {"order": 2.0}),
        ("PCSampler", {}, {"stochastic": True, "order": None}),
    ]
    ve = {"prediction": "x0", "label": "sigma", "end": 0.0}
    return [
        Peer(versioned("azula"), name, sampler(getattr(s, name), **c), fs.VE(LOW, HIGH), {**ve, **o})
        for name, c, o in table
        if hasattr(s, name)
    ]


def flow_matching() -> list[Peer]:
    """Return its ODE solver, whose time runs from noise at 0 to data at 1."""
    from flow_matching.solver import ODESolver

    def sampler(method: str) -> Callable[..., Any]:
        def run(net: Any, n: int, seed: int, steps: int) -> Any:
            x = torch.randn(n, *net.shape, generator=torch.Generator().manual_seed(seed))
            solver = ODESolver(lambda x, t: -net(x, t))
            return solver.sample(x_init=x, step_size=1.0 / steps, method=method)

        return run

    options = {"prediction": "flow", "label": lambda t: 1.0 - t}
    table = [("euler", {"exact_on_point": True}), ("midpoint", {"order": 2.0}), ("heun3", {"order": 2.0})]
    return [Peer(versioned("flow-matching"), m, sampler(m), fs.Flow(), {**options, **o}) for m, o in table]


def torchsde() -> list[Peer]:
    """Return its methods on the reverse SDE of VE; without a last step they leave the noise of sigma_min."""
    import torchsde as sde

    from bench.peers.torchsde import ReverseVE

    class Reverse(ReverseVE):
        def sigma(self, tau: Any) -> Any:
            return LOW * (HIGH / LOW) ** (1.0 - tau)

        def f(self, tau: Any, y: Any) -> Any:
            sigma = self.sigma(tau)
            rate = torch.log(torch.tensor(HIGH / LOW))
            return 2.0 * rate * sigma**2 * self.model(y.reshape(len(y), *self.shape), sigma).reshape(len(y), -1)

        def g(self, tau: Any, y: Any) -> Any:
            return (torch.sqrt(2.0 * torch.log(torch.tensor(HIGH / LOW))) * self.sigma(tau)).expand_as(y)

    def sampler(method: str) -> Callable[..., Any]:
        def run(net: Any, n: int, seed: int, steps: int) -> Any:
            torch.manual_seed(seed)
            y, ends = HIGH * torch.randn(n, *net.shape).flatten(1), torch.tensor([0.0, 1.0])
            motion = sde.BrownianInterval(0.0, 1.0, size=y.shape, entropy=seed, levy_area_approximation="space-time")
            model = Reverse(net, net.shape)
            with torch.no_grad():
                y = sde.sdeint(model, y, ends, bm=motion, method=method, dt=(1.0 + 1e-6) / steps)[-1]
            return y.reshape(n, *net.shape)

        return run

    options = {"prediction": "score", "label": "sigma", "stochastic": True, "end": 0.0}
    return [Peer(versioned("torchsde"), m, sampler(m), fs.VE(LOW, HIGH), options) for m in ("euler", "srk")]


def torchdiffeq() -> list[Peer]:
    """Return its fixed grids on the ODE of EDM; they end at sigma_min."""
    from torchdiffeq import odeint

    def sampler(method: str) -> Callable[..., Any]:
        def run(net: Any, n: int, seed: int, steps: int) -> Any:
            knots = torch.tensor(fs.karras(steps, clean=False)(fs.EDM(LOW, HIGH)))
            x = HIGH * torch.randn(n, *net.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            return odeint(lambda t, x: net(x, t), x, knots, method=method)[-1]

        return run

    table = [("euler", {}), ("midpoint", {"order": 2.0}), ("rk4", {"order": 4.0})]
    return [Peer(versioned("torchdiffeq"), m, sampler(m), fs.EDM(LOW, HIGH), {"end": LOW, **o}) for m, o in table]


def deepinv() -> list[Peer]:
    """Return its reverse VP SDE and probability flow; data are in [-1, 1] as its denoisers' (minus_one_one)."""
    import deepinv as dinv

    schedule = fs.VP()

    def sampler(alpha: float, kind: str) -> Callable[..., Any]:
        def run(net: Any, n: int, seed: int, steps: int) -> Any:
            class Exact(dinv.models.Denoiser):
                def __init__(self) -> None:
                    super().__init__()

                def forward(self, x: Any, sigma: Any, *args: Any, **kwargs: Any) -> Any:
                    # Called with x / alpha on 0 .. 1 and half the noise that stands on -1 .. 1.
                    ratio = 2.0 * torch.as_tensor(sigma).double().flatten()[0]
                    a = 1.0 / (1.0 + ratio**2).sqrt()
                    state = ((2.0 * x - 1.0) * a).to(x.dtype)
                    return ((net(state, float(ratio)) + 1.0) / 2.0).to(x.dtype)

            times = torch.linspace(1.0, 1e-3, steps + 1, dtype=torch.float64)
            solver = getattr(dinv.sampling, kind)(timesteps=times, rng=torch.Generator())
            sde = dinv.sampling.VariancePreservingDiffusion(denoiser=Exact(), alpha=alpha, solver=solver)
            return 2.0 * sde.sample((n, *net.shape), seed=seed) - 1.0

        return run

    options = {"prediction": "x0", "label": "sigma", "end": 1e-3}
    return [
        Peer(versioned("deepinv"), "VP, reverse SDE, Euler", sampler(1.0, "EulerSolver"), schedule,
             {**options, "stochastic": True}),
        Peer(versioned("deepinv"), "VP, probability flow, Euler", sampler(0.0, "EulerSolver"), schedule, options),
        Peer(versioned("deepinv"), "VP, probability flow, Heun", sampler(0.0, "HeunSolver"), schedule, options),
    ]  # fmt: skip


def physicsnemo() -> list[Peer]:
    """Return its four solvers around its own EDM noise scheduler."""
    from physicsnemo.diffusion.noise_schedulers import EDMNoiseScheduler
    from physicsnemo.diffusion.samplers import sample

    def sampler(solver: str, **config: Any) -> Callable[..., Any]:
        def run(net: Any, n: int, seed: int, steps: int) -> Any:
            torch.manual_seed(seed)
            scheduler = EDMNoiseScheduler(sigma_min=LOW, sigma_max=HIGH)
            denoiser = scheduler.get_denoiser(x0_predictor=lambda x, t: net(x, t))
            x = HIGH * torch.randn(n, *net.shape)
            options = {"num_steps": steps, **config} if config else None
            return sample(denoiser, x, scheduler, steps, solver=solver, solver_options=options)

        return run

    own, schedule = versioned("nvidia-physicsnemo"), fs.EDM(LOW, HIGH)
    return [
        Peer(own, "euler", sampler("euler"), schedule, {"prediction": "x0", "exact_on_point": True}),
        Peer(own, "heun", sampler("heun"), schedule, {"prediction": "x0", "order": 2.0}),
        Peer(own, "edm_stochastic_euler as by default", sampler("edm_stochastic_euler"), schedule,
             {"prediction": "x0", "stochastic": True}),
        Peer(own, "edm_stochastic_euler, S_churn 4", sampler("edm_stochastic_euler", S_churn=4.0, S_noise=1.0),
        schedule,
             {"prediction": "x0", "stochastic": True}),
        Peer(own, "edm_stochastic_heun, S_churn 4", sampler("edm_stochastic_heun", S_churn=4.0, S_noise=1.0), schedule,
             {"prediction": "x0", "stochastic": True}),
    ]  # fmt: skip


LIBRARIES = {
    f.__name__: f for f in (diffusers, k_diffusion, azula, flow_matching, torchsde, torchdiffeq, deepinv, physicsnemo)
}
NOT_RUN = {
    "sbi": "its samplers take a trained posterior, not a network with a schedule; compared through its adapter",
    "torchcfm": "has losses and paths, and no sampler",
    "ComfyUI, A1111, RES4LYF": "applications, not packages; their formulas are compared with recorded runs",
    "score_sde, EDM, ER-SDE-Solver": "repositories, not packages; their formulas are compared with recorded runs",
    "zea, anemoi, bayesflow, Boltz": "samplers inside a framework, with no function of a network to call",
    "sglang, vllm-omni, verl-omni": "servers that need a GPU",
}


@cache
def _torchvision() -> None:
    """Let a torchvision of another torch be imported: it misses operators, which no sampler calls."""
    for _ in range(20):
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            name = re.search(r"torchvision::(\w+) does not exist", str(error))
            if name is None:
                return
            _OPERATORS.define(f"{name[1]}(Tensor a, Tensor b, float c) -> Tensor")
            for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[module]
        except ImportError:
            return
        else:
            return


_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def load(name: str) -> list[Peer] | str:
    """Return the samplers of a library, or why there are none."""
    if importlib.util.find_spec(name) is None:
        return "not installed"
    _torchvision()
    try:
        return LIBRARIES[name]()
    except Exception as error:  # an import that fails in a way of its own
        return f"installed, but cannot be used here ({type(error).__name__}: {' '.join(str(error).split())[:150]})"
