"""Diffusion models of PhysicsNeMo on this engine, and its solvers in PhysicsNeMo's ``sample``."""

from fastscore.adapters.physicsnemo.model import PREDICTS, LinearGaussian, Residual, from_physicsnemo, times
from fastscore.adapters.physicsnemo.solver import LastEuler, Solver

__all__ = ["PREDICTS", "LastEuler", "LinearGaussian", "Residual", "Solver", "from_physicsnemo", "times"]
