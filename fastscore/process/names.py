"""Schedules and spacings by name: what the command line and Python share. Importing it costs no NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastscore.errors import short, typed, unknown

if TYPE_CHECKING:
    from fastscore.process.schedule import Schedule

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
INDICES = ("leading", "trailing", "linspace")  # spacings of tables
SPACINGS = ("uniform", "quadratic", "logsnr", "karras", "arctan", *INDICES)  # see process/grid.py
NAMED = (  # rules of other codes, see process/named_grids.py
    "simple", "normal", "sgm-uniform", "ddim-uniform", "beta", "beta57", "even", "leading-dpm", "linspace-dpm",
    "linspace-euler", "lcm", "exponential", "polyexponential", "karras-comfyui", "kl-optimal", "kl-optimal-a1111",
    "beta-a1111", "linear-quadratic", "laplace", "piecewise", "karras-exponential", "vp", "boltz", "bong-tangent",
    "ays-sd15", "ays-sdxl", "ays-svd", "ays-sd15-a1111", "ays-sdxl-a1111", "ays-sd15-diffusers", "ays-sdxl-diffusers",
    "ays-svd-diffusers", "ays-sd15-timesteps", "ays-sdxl-timesteps", "optimal-steps-flux", "optimal-steps-wan",
    "optimal-steps-chroma",
)  # fmt: skip
GRIDS = ("default", *SPACINGS, *NAMED)  # what ``grid="karras"`` and --grid take
# Names of other codes for what has another name here, and those that stand for more than one thing.
_SAME = {"automatic": "default", "ddim": "ddim-uniform", "lu-lambdas": "logsnr", "beta-diffusers": "beta-a1111"}
_UNCLEAR = {
    "align-your-steps": "ays-sd15, ays-sdxl or ays-svd, which the network decides; -a1111 and -diffusers are theirs",
    "optimal-steps": "optimal-steps-flux, optimal-steps-wan or optimal-steps-chroma, which the network decides",
}
_UNCLEAR["ays"] = _UNCLEAR["align-your-steps"]
TUNED = "tuned"  # a grid that was fitted to the model, see engine/fitted.py
# Settings of schedules, and the schedules that have them.
SETTINGS = {
    "sigma_min": ("ve", "edm", "smld"),
    "sigma_max": ("ve", "edm", "smld"),
    "beta_min": ("vp", "subvp", "vp-exponential", "ddpm"),
    "beta_max": ("vp", "subvp", "vp-exponential", "ddpm"),
    "base": ("tutorial",),
    "shift": ("flow",),
    "table_steps": ("ddpm", "ddpm-cosine", "smld"),
    "zero_snr": ("ddpm", "ddpm-cosine"),
    "t_end": ("vp", "subvp", "ve", "flow", "vp-cosine", "vp-exponential", "tutorial"),
}


def listed(kind: str, name: str, names: tuple[str, ...]) -> str:
    """Return a name as it is listed, whatever its case and underscores; ValueError for another, with the nearest."""
    found = str(name).strip().replace("_", "-").replace(" ", "-").lower()
    if found in names:
        return found
    raise unknown(kind, name, names)


def grid_name(name: str, kind: str = "grid", names: tuple[str, ...] = GRIDS) -> str:
    """Return the name of a grid as it is listed, from any of its spellings."""
    found = str(name).strip().replace("_", "-").replace(" ", "-").lower()
    if found in _UNCLEAR:
        raise ValueError(f"{kind} = {short(name)} is one of {_UNCLEAR[found]}")
    return listed(kind, _SAME.get(found, name), names)


@typed
def named_schedule(
    name: str | None,
    default: Schedule,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    *,
    beta_min: float | None = None,
    beta_max: float | None = None,
    base: float | None = None,
    shift: float | None = None,
    table_steps: int | None = None,
    zero_snr: bool | None = None,
    t_end: float | None = None,
) -> Schedule:
    """Return the schedule of a name, or ``default``, with some of its settings changed and all others kept.

    A name that ``default`` itself has stands for it: ``vp`` of a network trained on VP with betas of its own has those
    betas. Every other name stands for the schedule with its own defaults.

    Args:
        name: one of SCHEDULES; underscores and any case will do. None is ``default``, but VP where that is Trig: an
            exact model fits every schedule.
        default: the one that the network was trained on.
        sigma_min, sigma_max: bounds of ve, edm and smld, positive and rising.
        beta_min, beta_max: rates at t = 0 and 1 of vp, subvp and vp-exponential, positive and rising; the first and
            the last beta of ddpm, in 0 .. 1.
        base: of tutorial, dx = base^t dw; above 1.
        shift: of flow, positive; Stable Diffusion 3 samples at 3.
        table_steps: length of a table: T of ddpm and ddpm-cosine, the number of noise levels of smld.
        zero_snr: whether ddpm and ddpm-cosine end at pure noise; see ``discrete_vp``.
        t_end: last time of a continuous schedule before sigma = 0 (eps of Song et al. 2021); edm ends at sigma_min.

    Raises:
        ValueError: an unknown name, a setting that belongs to other schedules, or one out of range.
    """
    settings = {
        "sigma_min": sigma_min, "sigma_max": sigma_max, "beta_min": beta_min, "beta_max": beta_max, "base": base,
        "shift": shift, "table_steps": table_steps, "zero_snr": zero_snr, "t_end": t_end,
    }  # fmt: skip
    settings = {k: v for k, v in settings.items() if v is not None}
    schedule = _named(name, default)
    return _changed(schedule, settings) if settings else schedule


def _named(name: str | None, default: Schedule) -> Schedule:
    """Return ``default`` if the name is its own, or else the schedule of the name with its own defaults."""
    from fastscore.process import continuous as c
    from fastscore.process import discrete as d
    from fastscore.process.beta import CosineBeta, ExponentialBeta

    if name is None:
        return c.VP() if isinstance(default, c.Trig) else default
    name = listed("schedule", name, SCHEDULES)
    schedule = {
        "vp": c.VP,
        "subvp": c.SubVP,
        "ve": c.VE,
        "edm": c.EDM,
        "flow": c.Flow,
        "vp-cosine": lambda: c.VP(CosineBeta()),
        "vp-exponential": lambda: c.VP(ExponentialBeta()),
        "tutorial": c.TutorialVE,
        "ddpm": d.discrete_vp,
        "ddpm-cosine": lambda: d.discrete_vp("cosine"),
        "smld": d.smld,
    }[name]()
    return default if _kind(default) == _kind(schedule) else schedule


def _kind(schedule: Schedule) -> tuple[object, ...]:
    """Return what schedules of one name have in common."""
    return type(schedule), type(getattr(schedule, "beta", None)), _recipe(schedule).get("kind")


def _recipe(schedule: Schedule) -> dict[str, Any]:
    """Return the arguments of ``discrete_vp`` or ``smld`` that make a table; none if those cannot make it."""
    import numpy as np

    from fastscore.process.discrete import DiscreteVE, DiscreteVP, discrete_vp, smld

    if isinstance(schedule, DiscreteVP):
        n, betas = len(schedule.betas), schedule.betas
        zero = betas[-1] == 1.0
        # The scale of a table to pure noise hides its last beta: only DDPM's own is known again.
        linear: dict[str, Any] = {"kind": "linear", "beta_min": betas[0], "beta_max": 0.02 if zero else betas[-1]}
        cosine: dict[str, Any] = {"kind": "cosine"}
        for recipe in (linear, cosine):
            recipe |= {"n": n, "zero_snr": zero and n > 1}
            if np.allclose(discrete_vp(**recipe).betas, betas, rtol=1e-9, atol=0.0):
                return recipe
    if isinstance(schedule, DiscreteVE):
        recipe = {"n": len(schedule.sigmas), "sigma_min": schedule.sigmas[0], "sigma_max": schedule.sigmas[-1]}
        if np.allclose(smld(**recipe).sigmas, schedule.sigmas, rtol=1e-9, atol=0.0):
            return {"kind": "geometric", **recipe}
    return {}


def _changed(schedule: Any, settings: dict[str, Any]) -> Any:
    """Return the schedule with some settings changed, be they its own, its noise rate's or its table's."""
    from dataclasses import replace

    from fastscore.process.discrete import DiscreteVE, DiscreteVP

    if isinstance(schedule, DiscreteVP | DiscreteVE):
        return _changed_table(schedule, settings)
    beta: Any = getattr(schedule, "beta", None)
    own, of_beta = (set(getattr(part, "__dataclass_fields__", ())) for part in (schedule, beta))
    for name in settings:
        if name not in own | of_beta:
            raise _refusal(name, schedule)
    changes: dict[str, Any] = {k: v for k, v in settings.items() if k in own}
    rates = {k: v for k, v in settings.items() if k not in own}
    if rates:
        changes["beta"] = replace(beta, **rates)
    end = settings.get("t_end")
    if end is not None and not schedule.t_clean < end < schedule.T:
        raise ValueError(f"t_end = {end} must lie between {schedule.t_clean} (the data) and T = {schedule.T}")
    return replace(schedule, **changes)


def _changed_table(schedule: Any, settings: dict[str, Any]) -> Any:
    from fastscore.process.beta import ordered
    from fastscore.process.discrete import DiscreteVP, discrete_vp, smld

    recipe = _recipe(schedule)
    renamed = {"n" if k == "table_steps" else k: v for k, v in settings.items()}
    for name, key in zip(settings, renamed, strict=True):
        if key not in recipe:
            raise _refusal(name, schedule)
    recipe |= renamed
    if isinstance(schedule, DiscreteVP):
        for name in ("beta_min", "beta_max"):
            if not 0.0 < recipe.get(name, 0.5) < 1.0:
                raise ValueError(
                    f"{name} = {recipe[name]} of a table is the variance of one step, strictly between 0 and 1 (0.0001 "
                    "and 0.02 in DDPM); rates of continuous time belong to the schedules vp and subvp"
                )
        return discrete_vp(**recipe)
    if recipe["n"] > 1:
        ordered("sigma_min", recipe["sigma_min"], "sigma_max", recipe["sigma_max"])
    return smld(recipe["n"], recipe["sigma_min"], recipe["sigma_max"])


def _refusal(name: str, schedule: Schedule) -> ValueError:
    """Return the error that a setting belongs to other schedules."""
    *others, last = SETTINGS[name]
    owners = f"schedules {', '.join(others)} and {last}" if others else f"schedule {last}"
    return ValueError(f"{name} belongs to the {owners}; leave it out with {_description(schedule)}, or name another")


def _description(schedule: Schedule) -> str:
    """Return class and noise rate of a schedule in words."""
    beta, name = getattr(schedule, "beta", None), type(schedule).__name__
    kind = _recipe(schedule).get("kind", "a table of your own" if name.startswith("Discrete") else "")
    detail = type(beta).__name__ if beta is not None else kind
    return f"schedule {name}" + (f" ({detail})" if detail else "")
