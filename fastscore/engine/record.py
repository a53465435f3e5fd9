"""What samples are a function of, of a sampler as it stands."""

from __future__ import annotations

from typing import Any

from fastscore.engine.mixes import batched_by
from fastscore.engine.units import described
from fastscore.network import arithmetic


def record_of(sampler: Any) -> dict[str, Any]:
    """Return what ``Sampler.record`` does."""
    plan = sampler.plan
    cost = {"nfe": plan.nfe, "plan_sha256": plan.hash} if plan else {"adaptive": sampler.cost.summary()}
    engines = [vars(sampler)[name] for name in ("engine", "inpainting") if name in vars(sampler)]
    cuda = {"cuda": arithmetic.described(place)} if (place := sampler.execution.place).type == "cuda" else {}
    return {
        **described(sampler.model),
        "schedule": repr(sampler.schedule) if len(repr(sampler.schedule)) < 500 else type(sampler.schedule).__name__,
        "solver": repr(sampler.solver),
        "grid": repr(sampler.grid),
        **cost,
        "execution": sampler.execution.to_dict(),
        **guided(sampler),
        "backend": sampler.ops.name,
        "graph": engines[-1].mode if engines else "off",
        "network": vars(sampler.numerics),
        **cuda,
    }


def guided(sampler: Any) -> dict[str, str]:
    """Return how a guided sampler evaluates rows that are mixed of one network's outputs; see Execution.guided."""
    if sampler.guidance is None:
        return {}
    return {"guided": "batched" if batched_by(sampler) else "serial"}
