"""What others call their solvers: names of ComfyUI, k-diffusion, A1111 and diffusers, and what each of them is here.

A name that is ours, or that two projects use for two rules, is told apart by its owner, as in "comfyui:deis". Without
one it is ours, or else that of the first project that has it. Importing this costs no NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fastscore import solvers as s
from fastscore.errors import nearest, short, unknown


@dataclass(frozen=True)
class Alias:
    """What a name of another project stands for.

    Attributes:
        solver: a name of solvers/names.py, or what makes the solver from its options; None if it cannot be had.
        note: what else its run has, or why it cannot be had and what is nearest.
        noisy: whether a solver that has no name here draws noise.
        grid: the grid that the name says, as "DPM++ 2M Karras" does.
    """

    solver: str | Callable[..., Any] | None
    note: str = ""
    noisy: bool = False
    grid: str | None = None


def _window(low: float, high: float) -> Any:
    """Return SA-Solver's noise in ComfyUI: of steps that end between two levels."""
    from fastscore.solvers.eta import EtaWindow

    return EtaWindow(low, high, at="end", of="ratio")


def _absent(why: str, nearest: str) -> Alias:
    return Alias(None, f"{why}; nearest is {nearest}")


IN_SIGMA = "Euler in sigma, which is DDIM whatever the schedule"
HEUN = "in sigma: on EDM() and Flow()"
DROPS = "of a list with one level more, the last but one left out"
FLOW = "on a flow, the same name with -rf"
SD = "the window is that of Stable Diffusion 1.5's 0.2 .. 0.8"
PICARD = "with parallel=Picard(..)"
TOKENS = "its samples are tokens, and there is no noise in numbers to step through; nearest is nothing here"

K_DIFFUSION: dict[str, Alias] = {
    "sample_euler": Alias("ddim", IN_SIGMA),
    "sample_euler_ancestral": Alias("euler-ancestral", FLOW),
    "sample_heun": Alias("heun", HEUN),
    "sample_dpm_2": Alias("dpm-2", DROPS),
    "sample_dpm_2_ancestral": Alias("dpm-2-ancestral", f"{DROPS}; {FLOW}"),
    "sample_lms": Alias(lambda: s.LMS(4, denoise=False)),
    "sample_dpm_fast": Alias("dpm-fast"),
    "sample_dpm_adaptive": Alias("dpm23", "there one step for the batch: DPMAdaptive(3, norm='batch')"),
    "sample_dpmpp_2s_ancestral": Alias("dpmpp-2s-ancestral", FLOW),
    "sample_dpmpp_sde": Alias(lambda eta=1.0: s.DPMSolver(2, "x0", eta, noise="split"), "", True),
    "sample_dpmpp_2m": Alias("dpmpp-2m"),
    "sample_dpmpp_2m_sde": Alias("dpmpp-2m-sde", "with solver_type='midpoint'; dpmpp-2m-sde-heun is its 'heun'"),
    "sample_dpmpp_3m_sde": Alias(lambda eta=1.0: s.DPMMultistep(3, "x0", "k-diffusion", eta), "", True),
}
COMFYUI: dict[str, Alias] = {
    **{name.removeprefix("sample_"): alias for name, alias in K_DIFFUSION.items()},
    "dpmpp_2m_sde": Alias("dpmpp-2m-sde"),
    "euler_cfg_pp": Alias("euler-cfg-pp"),
    "euler_ancestral_cfg_pp": Alias("euler-ancestral-cfg-pp"),
    "heunpp2": Alias("heunpp2"),
    "exp_heun_2_x0": Alias("exp-heun-2-x0"),
    "exp_heun_2_x0_sde": Alias("exp-heun-2-x0-sde"),
    "dpmpp_2s_ancestral_cfg_pp": Alias("dpmpp-2s-ancestral-cfg-pp"),
    "dpmpp_sde_gpu": K_DIFFUSION["sample_dpmpp_sde"],
    "dpmpp_2m_cfg_pp": Alias("dpmpp-2m-cfg-pp"),
    "dpmpp_2m_sde_gpu": Alias("dpmpp-2m-sde"),
    "dpmpp_2m_sde_heun": Alias("dpmpp-2m-sde-heun"),
    "dpmpp_2m_sde_heun_gpu": Alias("dpmpp-2m-sde-heun"),
    "dpmpp_3m_sde_gpu": K_DIFFUSION["sample_dpmpp_3m_sde"],
    "ddpm": Alias(lambda eta=1.0: s.DDIM(eta), "DDPM's posterior variance, on every schedule", True),
    "lcm": Alias("lcm"),
    "ipndm": Alias("ipndm"),
    "ipndm_v": Alias(lambda: s.LMS(4, form="ipndm-v"), "with its slip; ipndm-v is what it means to be"),
    "deis": Alias(lambda: s.DEIS(3, "tab", points=10000)),
    "res_multistep": Alias(lambda: s.DPMMultistep(2)),
    "res_multistep_cfg_pp": Alias("res-multistep-cfg-pp"),
    "res_multistep_ancestral": Alias("res-multistep-ancestral"),
    "res_multistep_ancestral_cfg_pp": Alias("res-multistep-ancestral-cfg-pp"),
    "gradient_estimation": Alias("gradient-estimation"),
    "gradient_estimation_cfg_pp": Alias("gradient-estimation-cfg-pp"),
    "cfgpp_ud10_ab": Alias("cfgpp-ud10-ab"),
    "er_sde": Alias(lambda: s.ERSDE(3, form="taylor", points=200), "er-sde has exact integrals", True),
    "seeds_2": Alias("seeds-2"),
    "seeds_3": Alias("seeds-3"),
    "sa_solver": Alias(lambda: s.SASolver(3, 4, _window(0.571, 5.093), lower_order_final="comfyui"), SD, True),
    "sa_solver_pece": Alias(
        lambda: s.SASolver(3, 4, _window(0.571, 5.093), pece=True, lower_order_final="comfyui"), SD, True
    ),
    "ddim": Alias("ddim"),
    "uni_pc": Alias(lambda: s.UniPC(3, "bh1", lower_order_final=True), f"to sigma = 0.001, {DROPS}"),
    "uni_pc_bh2": Alias(lambda: s.UniPC(3, "bh2", lower_order_final=True), f"to sigma = 0.001, {DROPS}"),
}
A1111: dict[str, Alias] = {
    "Euler": COMFYUI["euler"],
    "Euler a": COMFYUI["euler_ancestral"],
    "LMS": COMFYUI["lms"],
    "Heun": COMFYUI["heun"],
    "DPM2": COMFYUI["dpm_2"],
    "DPM2 a": COMFYUI["dpm_2_ancestral"],
    "DPM++ 2S a": COMFYUI["dpmpp_2s_ancestral"],
    "DPM++ 2M": COMFYUI["dpmpp_2m"],
    "DPM++ SDE": COMFYUI["dpmpp_sde"],
    "DPM++ 2M SDE": COMFYUI["dpmpp_2m_sde"],
    "DPM++ 2M SDE Heun": COMFYUI["dpmpp_2m_sde_heun"],
    "DPM++ 3M SDE": COMFYUI["dpmpp_3m_sde"],
    "DPM fast": COMFYUI["dpm_fast"],
    "DPM adaptive": COMFYUI["dpm_adaptive"],
    "LCM": COMFYUI["lcm"],
    "Restart": Alias(
        lambda: s.Restart((s.Interval(0.1, 2.0, 9),)), "of 20 to 35 steps, the nine of the restart included", True
    ),
    "DDIM": Alias("ddim"),
    "DDIM CFG++": Alias("euler-cfg-pp"),
    "PLMS": Alias("plms"),
    "UniPC": Alias(lambda: s.UniPC(3, "bh1", lower_order_final=True)),
}
DIFFUSERS: dict[str, Alias] = {  # with their default configurations; from_diffusers reads others
    "DDIMScheduler": Alias(
        lambda eta=0.0: s.DDIM(eta, fixed_stride=True), "on a table's whole indices; ddim on others", True
    ),
    "DDIMParallelScheduler": Alias("ddim", PICARD),
    "CogVideoXDDIMScheduler": Alias("ddim"),
    "DDIMInverseScheduler": Alias(lambda: s.DDIM(fixed_stride=True, inverse=True), "with start='state'"),
    "DDPMScheduler": Alias("ddpm"),
    "DDPMParallelScheduler": Alias("ddpm", PICARD),
    "DDPMWuerstchenScheduler": Alias("ddpm"),
    "UnCLIPScheduler": Alias("ddpm", "whose network gives variances, too: nearest are variance='small' and 'large'"),
    "PNDMScheduler": Alias("pndm", "plms is its skip_prk_steps"),
    "IPNDMScheduler": Alias("ipndm"),
    "DPMSolverMultistepScheduler": Alias(lambda: s.DPMMultistep(2, "x0", "diffusers", lower_order_final=True)),
    "DPMSolverMultistepInverseScheduler": _absent("it steps up to noise", "ProbabilityFlow.encode, the same ODE"),
    "DPMSolverSinglestepScheduler": Alias(lambda: s.DPMSolver(2, "x0", on_grid=True)),
    "DPMSolverSDEScheduler": K_DIFFUSION["sample_dpmpp_sde"],
    "CogVideoXDPMScheduler": Alias("dpmpp-2m-sde", "whose second-order term has another factor"),
    "DEISMultistepScheduler": Alias(lambda: s.DEIS(2, lower_order_final=True)),
    "UniPCMultistepScheduler": Alias(lambda: s.UniPC(2, "bh2", lower_order_final=True)),
    "SASolverScheduler": Alias(
        lambda: s.SASolver(2, 2, _indices(200, 800), True, False, "diffusers"), "on a table of 1000 indices", True
    ),
    "EulerDiscreteScheduler": COMFYUI["euler"],
    "EulerAncestralDiscreteScheduler": COMFYUI["euler_ancestral"],
    "HeunDiscreteScheduler": COMFYUI["heun"],
    "LMSDiscreteScheduler": COMFYUI["lms"],
    "KDPM2DiscreteScheduler": Alias("dpm-2"),
    "KDPM2AncestralDiscreteScheduler": Alias("dpm-2-ancestral"),
    "KarrasVeScheduler": Alias("edm-churn", "with Churn's defaults in place of its own"),
    "EDMEulerScheduler": COMFYUI["euler"],
    "EDMDPMSolverMultistepScheduler": Alias(lambda: s.DPMMultistep(2, "x0", "diffusers", lower_order_final=True)),
    "CosineDPMSolverMultistepScheduler": Alias("dpmpp-2m-sde"),
    "FlowMatchEulerDiscreteScheduler": Alias("euler", "on Flow(); pingpong is its stochastic_sampling"),
    "FlowMatchHeunDiscreteScheduler": Alias("heun", "on Flow()"),
    "FlowMatchLCMScheduler": Alias("pingpong"),
    "FlowMapEulerDiscreteScheduler": Alias("euler", "on Flow(); a network of two times is told the end of its step"),
    "LTXEulerAncestralRFScheduler": Alias("euler-ancestral-rf"),
    "LCMScheduler": Alias(lambda: s.Renoise(boundary=10.0), "on a table's indices", True),
    "TCDScheduler": Alias("tcd"),
    "CMStochasticIterativeScheduler": Alias("consistency"),
    "SCMScheduler": Alias("pingpong", "on Trig(), the network's output as v"),
    "MiniMaxH3Scheduler": Alias("ddim", "on Flow(), the network's output as -v"),
    "ScoreSdeVeScheduler": Alias("score-sde", "with corrector='langevin'"),
    "ScoreSdeVpScheduler": Alias("score-sde", "with predictor='euler-maruyama'"),
    "RePaintScheduler": Alias(lambda: s.RePaint(), "with known=Known(..)", True),
    "ConsistencyDecoderScheduler": _absent("two fixed levels of one decoder", "consistency, on a grid of two steps"),
    "HeliosScheduler": _absent("a run goes through images of several sizes", "unipc, at one size"),
    "HeliosDMDScheduler": _absent("a run goes through images of several sizes", "pingpong, at one size"),
    "PiflowScheduler": _absent("its network returns velocities at ten times, not one", "euler, on Flow()"),
    "RFD4ProteinaScheduler": _absent("its score is rescaled in time to sample at a low temperature", "em with eta"),
    **dict.fromkeys(
        (
            "AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler",
            "VQDiffusionScheduler",
        ),
        Alias(None, TOKENS),
    ),
}  # fmt: skip
OWNERS: dict[str, dict[str, Alias]] = {
    "comfyui": COMFYUI, "k-diffusion": K_DIFFUSION, "a1111": A1111, "diffusers": DIFFUSERS,
}  # fmt: skip
# Schedulers of A1111 that a name of a sampler may end with, and the grid of each.
ENDINGS = {
    "karras": "karras", "exponential": "exponential", "polyexponential": "polyexponential", "simple": "simple",
    "sgm-uniform": "sgm-uniform", "kl-optimal": "kl-optimal-a1111", "align-your-steps": "ays-sd15-a1111",
    "normal": "normal", "ddim": "ddim-uniform", "beta": "beta-a1111", "uniform": "normal", "automatic": None,
}  # fmt: skip


def _indices(low: float, high: float) -> Any:
    """Return SA-Solver's noise in diffusers: of steps that start between two indices of a table."""
    from fastscore.solvers.eta import EtaWindow

    return EtaWindow(low, high)


def spelled(name: str) -> str:
    """Return a name in one spelling: small letters, hyphens, pp for ++, no sample_ before it and no Scheduler after."""
    text = str(name).strip().lower().replace("++", "pp").replace("_", "-").replace(" ", "-")
    return text.removeprefix("sample-").removesuffix("scheduler").strip("-")


def found(name: str, ours: tuple[str, ...]) -> Alias:
    """Return what a name stands for that is not spelt as one of ``ours``; its spelling may tell its owner.

    Raises:
        ValueError: nobody has the name, with the nearest that somebody has; or it cannot be had, with the reason.
    """
    said, _, rest = str(name).rpartition(":")
    if said and spelled(said) not in OWNERS:
        raise unknown(f"solver = {short(name)}: owner", said, OWNERS)
    tables = {owner: {spelled(k): alias for k, alias in table.items()} for owner, table in OWNERS.items()}
    own = {k: Alias(k) for k in ours}
    likely = [own, *tables.values()]
    if said:
        likely = [tables[spelled(said)]]
    elif owner := _owner(rest):
        likely.insert(0, tables[owner])
    text = spelled(rest)
    endings = [end for end in ENDINGS if text.endswith(f"-{end}")]
    for stem, grid in [(text, None), *((text.removesuffix(f"-{end}"), ENDINGS[end]) for end in endings)]:
        alias = next((table[stem] for table in likely if stem in table), None)
        if alias is not None and alias.solver is None:
            raise ValueError(f"solver = {short(name)} cannot be had: {alias.note}")
        if alias is not None:
            return replace(alias, grid=grid)
    near = nearest(text, dict.fromkeys(k for table in likely for k in table))
    raise ValueError(f"solver = {short(name)} is nobody's name{near}; it must be one of {', '.join(ours)}")


def _owner(name: str) -> str | None:
    """Return whose spelling a name has."""
    if name.startswith("sample_"):
        return "k-diffusion"
    return "diffusers" if name.endswith("Scheduler") else "a1111" if "++" in name or " " in name.strip() else None
