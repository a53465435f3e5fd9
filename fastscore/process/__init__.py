"""The forward process: schedules (alpha, sigma), time grids, and what a network predicts. NumPy float64; no torch."""
