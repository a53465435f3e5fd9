"""How a network runs: as it is, through torch.compile, or compiled ahead of time in float32 or bfloat16."""
