"""Plans: what a solver does, as a table of rows computed once in float64; passes rewrite plans."""

from fastscore.plan.passes import STARTS, clip, fold, make_plan, mix, validate
from fastscore.plan.rows import NORMS, LangevinStep, Plan, Row, Solver, lower, lower_known

__all__ = [
    "NORMS",
    "STARTS",
    "LangevinStep",
    "Plan",
    "Row",
    "Solver",
    "clip",
    "fold",
    "lower",
    "lower_known",
    "make_plan",
    "mix",
    "validate",
]
