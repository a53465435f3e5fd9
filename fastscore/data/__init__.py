"""Data sets: images, points, sequences, toys."""

from fastscore.data.load import Dataset, read_idx
from fastscore.data.toys import circles, toy

__all__ = ["Dataset", "circles", "read_idx", "toy"]
