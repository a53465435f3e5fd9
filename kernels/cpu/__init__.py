"""Kernels for CPUs: one C++ file, compiled when fastscore is installed where there is a compiler."""
