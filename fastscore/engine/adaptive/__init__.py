"""Adaptive solvers: samples in lanes, each at its own time with its own step."""
