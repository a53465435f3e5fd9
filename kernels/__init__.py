"""Kernels of fastscore. A leaf: nothing here imports fastscore."""
