"""Benchmarks of fastscore; run from the repository's root, see README.md."""
