"""The quality of samples, points and images alike: figures with floors, standard errors and one verdict."""

from fastscore.report.quality.compare import FIGURES, compare
from fastscore.report.quality.figures import Figure, Quality, holm
from fastscore.report.quality.points import energy_distance, sliced_wasserstein

__all__ = ["FIGURES", "Figure", "Quality", "compare", "energy_distance", "holm", "sliced_wasserstein"]
