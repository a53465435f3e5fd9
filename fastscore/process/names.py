"""Schedules and spacings by name: what the command line and Python share. Importing it costs no NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
BOUNDED = ("ve", "edm", "smld")  # that have a sigma_min and a sigma_max
INDICES = ("leading", "trailing", "linspace")  # spacings of tables
SPACINGS = ("uniform", "quadratic", "logsnr", "karras", "arctan", *INDICES)  # see process/grid.py


def named_schedule(
    name: str | None, default: Schedule, sigma_min: float | None = None, sigma_max: float | None = None
) -> Schedule:
    """Return the schedule of a name, or ``default`` if there is none.

    Args:
        name: one of SCHEDULES; underscores and any case will do. None is ``default``, but VP where that is Trig: an
            exact model fits every schedule.
        default: the one that the network was trained on.
        sigma_min, sigma_max: bounds of ve, edm and smld, positive and rising; their defaults, or those of ``default``,
            if left out.

    Raises:
        ValueError: an unknown name, a bound for a schedule that has none, or bounds out of range.
    """
    from fastscore.process import continuous as c
    from fastscore.process import discrete as d
    from fastscore.process.beta import CosineBeta, ExponentialBeta

    if name is not None:
        name = name.replace("_", "-").lower()
        if name not in SCHEDULES:
            raise ValueError(f"schedule = {name!r} must be one of {', '.join(SCHEDULES)}")
    bounds: dict[str, Any] = {k: v for k, v in (("sigma_min", sigma_min), ("sigma_max", sigma_max)) if v is not None}
    if name is None and isinstance(default, c.EDM | c.VE):
        return type(default)(**{"sigma_min": default.sigma_min, "sigma_max": default.sigma_max, **bounds})
    if bounds and name not in BOUNDED:
        schedule = name or type(default).__name__
        raise ValueError(
            f"{next(iter(bounds))} belongs to the schedules ve, edm and smld; leave it out with schedule {schedule}"
        )
    match name:
        case None:
            return c.VP() if isinstance(default, c.Trig) else default
        case "vp":
            return c.VP()
        case "subvp":
            return c.SubVP()
        case "ve":
            return c.VE(**bounds)
        case "edm":
            return c.EDM(**bounds)
        case "flow":
            return c.Flow()
        case "vp-cosine":
            return c.VP(CosineBeta())
        case "vp-exponential":
            return c.VP(ExponentialBeta())
        case "tutorial":
            return c.TutorialVE()
        case "ddpm":
            return d.discrete_vp()
        case "ddpm-cosine":
            return d.discrete_vp("cosine")
        case _:
            return d.smld(**bounds)
