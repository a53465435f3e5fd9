"""Exceptions that a run raises beside ValueError, which is for settings and arguments."""

from __future__ import annotations


class NonFiniteError(FloatingPointError):
    """A sample became NaN or Inf; the message names the sample and the row."""


class StepSizeError(ArithmeticError):
    """An adaptive solver cannot reach its tolerance; the message names the sample and the remedy."""


class SelfCheckError(ArithmeticError):
    """This machine does not give the bits that fastscore promises."""
