"""The engine: a sampler end to end, how its network runs, and how it scales."""
