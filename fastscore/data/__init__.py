"""Data sets: images, points, sequences, toys."""

from fastscore.data.affine import Affine
from fastscore.data.idx import read_idx
from fastscore.data.load import Dataset
from fastscore.data.masks import read_mask
from fastscore.data.toys import circles, toy

__all__ = ["Affine", "Dataset", "circles", "read_idx", "read_mask", "toy"]
