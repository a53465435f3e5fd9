"""The first minutes on a card: one file a phase, each run by bench/first_gpu.py in a process of its own."""
