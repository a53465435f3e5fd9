"""Changes of the estimate of x0: mixtures of two outputs, guides, and the measurements of inverse problems."""

from fastscore.guidance.mixture import Guidance

__all__ = ["Guidance"]
