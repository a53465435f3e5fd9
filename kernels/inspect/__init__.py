"""Reading compiled kernels: registers, spills, accesses, a static roofline. Nothing here runs in production."""
