"""The recorded lists of noise levels and times, and what reproduces each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from fastscore.adapters.diffusers.grids import knots_of
from fastscore.process.continuous import EDM, VE, Flow
from fastscore.process.discrete import DiscreteVP, discrete_vp
from fastscore.process.grid import Grid, edm_levels, karras, logsnr
from fastscore.process.level_rules import Piecewise, Polyexponential
from fastscore.process.rules import Leading
from fastscore.process.schedule import Array, Schedule, lam

FOLDER = Path(os.environ.get("FASTSCORE_GOLDEN2", Path(__file__).resolve().parents[3] / "shared" / "golden2"))
COPY = Path(__file__).resolve().parents[1] / "data" / "golden2_grids.json"
TOLERANCE = 2e-6  # of the largest number: the sources are float32
SD15, FLOW3 = discrete_vp("scaled-linear", 1000, 0.00085, 0.012), Flow(shift=3.0)
WIDE = EDM(1e-3, 5000.0)  # on which lists of levels have no ends


def recorded() -> dict[str, dict]:
    path = FOLDER / "golden.json" if (FOLDER / "golden.json").exists() else COPY
    return {name: s for name, s in json.loads(path.read_text()).items() if name.startswith("grid/")}


def levels(grid: Grid, schedule: Schedule) -> Array:
    """Return the levels of a grid as the codes count them, sigma / alpha or a flow's sigma."""
    t = grid(schedule)
    with np.errstate(divide="ignore", over="ignore"):
        return schedule.sigma(t) if isinstance(schedule, Flow) else np.exp(-lam(schedule, t))


def almost_pure_noise() -> DiscreteVP:
    """The table of diffusers with rescale_betas_zero_snr, whose last alpha^2 is 2^-24."""
    rescaled = discrete_vp("scaled-linear", 1000, 0.00085, 0.012, zero_snr=True)
    before = float(rescaled.alpha(998.0)) ** 2
    return DiscreteVP((*rescaled.betas[:-1], 1.0 - 2.0**-24 / before))


def ours(name: str, s: dict) -> tuple[Array | None, Array | None]:
    """Return (levels, times) of a recorded list; None where it has none of these or they say the same."""
    kind, n = name.removeprefix("grid/").rsplit("_n", 1)[0], s["n"]
    if kind.startswith("diffusers_"):
        return _diffusers(kind.removeprefix("diffusers_"), s, n)
    between = EDM(s.get("sigma_min", 0.03), s.get("sigma_max", 14.6))
    if "model" in s:
        schedule = {"sd15": SD15, "flow3": FLOW3}[s["model"]]
        rule = kind.removesuffix("_" + s["model"])
        return levels(Grid(rule, n, clean=True), schedule), None
    if kind.startswith("anemoi"):
        high = 7.0 if s.get("high_schedule_type") == "karras" else None
        rule = Piecewise(s["sigma_transition"], high, s.get("rho_low", 7.0), s.get("num_steps_low"))
        return levels(Grid(rule, n), between), None
    if kind == "laplace":  # n levels, the last of them the end: n - 1 steps
        return levels(Grid("laplace", n - 1), between), None
    if kind == "polyexponential":
        return levels(Grid(Polyexponential(s["rho"]), n), between), None
    return levels(*{
        "a1111_ays_sd15": (Grid("ays-sd15-a1111", n), WIDE),
        "a1111_ays_sdxl": (Grid("ays-sdxl-a1111", n), WIDE),
        "a1111_beta": (Grid("beta-a1111", n), between),
        "a1111_kl_optimal": (Grid("kl-optimal-a1111", n), between),
        "ays_SD1": (Grid("ays-sd15", n), WIDE),
        "ays_SDXL": (Grid("ays-sdxl", n), WIDE),
        "ays_SVD": (Grid("ays-svd", n), VE(1e-3, 700.0)),
        "bong_tangent": (Grid("bong_tangent", n), Flow()),
        "boltz": (Grid("boltz", n), WIDE),
        "vp": (Grid("vp", n), WIDE),
    }[kind]), None  # fmt: skip


def _diffusers(kind: str, s: dict, n: int) -> tuple[Array | None, Array | None]:
    config = s["config"]
    cls, _, rest = kind.partition("_")
    offset = config.get("steps_offset", 0)
    if cls == "flow" and rest != "map_shift5":
        # The adapter's: shift, dynamic shift, terminal, and the double shift of lists from n alone.
        given = {k: np.array(v) if k == "sigmas" else v for k, v in s["set_timesteps"].items()}
        steps = None if "sigmas" in given else n
        knots = np.array(knots_of(config, Flow(), steps, **given))
        if rest == "invert":  # their noise is where ours has signal
            return Flow().alpha(knots), None
        return np.repeat(knots, [1, *[2] * (n - 1), 1]) if rest == "heun" else knots, None
    if kind == "flow_map_shift5":
        return levels(Grid("even", n), Flow(shift=5.0)), None
    if kind == "dpm_flow3":
        return levels(Grid("even", n, start=0.999), FLOW3), None
    if kind == "edm_euler":
        return edm_levels(n)(EDM()), None
    if kind == "cosine":
        return levels(Grid("exponential", n), EDM(0.3, 500.0)), None
    if cls in ("lcm", "tcd"):
        return None, Grid("lcm", n)(SD15)[:-1]
    if cls in ("ddim", "pndm"):
        times = Grid(rest, n, clean=True, offset=offset)(SD15)[:-1]
        return None, times if cls == "ddim" else _runge_kutta(times, 1000 // n)
    table = almost_pure_noise() if rest == "zsnr" else SD15
    spacing = {
        "zsnr": Grid("trailing", n, clean=True),
        "trailing": Grid("trailing", n, clean=True),
        "leading": Grid("leading", n, clean=True, offset=offset),
        "linspace": Grid("linspace-euler", n),
        "karras": karras(n),
        "exponential": logsnr(n),
        "lu": logsnr(n),
        "beta": Grid("beta-a1111", n),
    }[rest]
    if cls in ("dpm", "deis") and rest in ("linspace", "leading"):
        spacing = Grid("linspace-dpm", n) if rest == "linspace" else Grid(Leading(offset), n)
    found = levels(spacing, table)
    if cls == "deis":  # they repeat the last level in place of 0
        found[-1] = found[-2]
    return found, spacing(table)[:-1]


def _runge_kutta(times: Array, stride: int) -> Array:
    """The evaluations of PNDM, which begins with three steps of Runge and Kutta, halves of its stride apart."""
    start = np.repeat(times[:4], 2)
    start[1:-1:2] = times[1:4] + stride // 2
    start = np.repeat(start[:-1], 2)[1:-1]
    return np.concatenate([start, times[3:]])


ALWAYS = (  # copied; the others stand where the recording is
    "a1111_ays_sd15_n20", "a1111_ays_sdxl_n20", "a1111_beta_n10", "a1111_kl_optimal_n10",
    "anemoi_piecewise_default_n10",
    "anemoi_piecewise_karras_karras_n10", "anemoi_piecewise_low7_n20", "ays_SD1_n20", "ays_SDXL_n20", "ays_SVD_n20",
    "beta57_flow3_n10", "beta57_sd15_n20", "beta_flow3_n10", "beta_sd15_n20", "boltz_n10", "bong_tangent_n20",
    "ddim_uniform_flow3_n10", "ddim_uniform_sd15_n20", "diffusers_cosine_n10", "diffusers_ddim_leading_n10",
    "diffusers_ddim_linspace_n20", "diffusers_ddim_trailing_n10", "diffusers_deis_beta_n10",
    "diffusers_deis_exponential_n10", "diffusers_deis_karras_n10", "diffusers_dpm_flow3_n10",
    "diffusers_dpm_leading_n20", "diffusers_dpm_linspace_n20", "diffusers_dpm_lu_n10", "diffusers_dpm_trailing_n10",
    "diffusers_dpm_zsnr_n10", "diffusers_edm_euler_n10", "diffusers_euler_karras_n20", "diffusers_euler_leading_n10",
    "diffusers_euler_linspace_n20", "diffusers_flow_heun_n10", "diffusers_flow_invert_n10",
    "diffusers_flow_map_shift5_n10", "diffusers_flow_mu_given_n10", "diffusers_flow_mu_n10",
    "diffusers_flow_shift3_given_n10", "diffusers_flow_shift3_n10", "diffusers_flow_terminal_n10", "diffusers_lcm_n9",
    "diffusers_pndm_leading_n10", "diffusers_pndm_linspace_n20", "diffusers_tcd_n9", "exponential_sd15_n10",
    "karras_sd15_n10", "kl_optimal_flow3_n10", "kl_optimal_sd15_n20", "laplace_n10", "linear_quadratic_flow3_n10",
    "linear_quadratic_sd15_n20", "normal_flow3_n10", "normal_sd15_n20", "polyexponential_n10", "sgm_uniform_flow3_n10",
    "sgm_uniform_sd15_n20", "simple_flow3_n10", "simple_sd15_n20", "vp_n10",
)  # fmt: skip

if __name__ == "__main__":
    kept = recorded()
    COPY.write_text(json.dumps({f"grid/{name}": kept[f"grid/{name}"] for name in ALWAYS}, indent=0) + "\n")
