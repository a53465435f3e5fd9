"""Pictures, by matplotlib (extra: plots): each function makes a Figure of arrays, ``save`` writes it."""

from fastscore.report.plots.curves import loss_curve, plot_loss, quality, work_precision
from fastscore.report.plots.figures import save
from fastscore.report.plots.levels import plan_rows, schedules
from fastscore.report.plots.moving import animate
from fastscore.report.plots.paths import chains, image_strip, paths_over_time, point_panels
from fastscore.report.plots.points import compare, density, forward

__all__ = [
    "animate",
    "chains",
    "compare",
    "density",
    "forward",
    "image_strip",
    "loss_curve",
    "paths_over_time",
    "plan_rows",
    "plot_loss",
    "point_panels",
    "quality",
    "save",
    "schedules",
    "work_precision",
]
