"""Reference operations in PyTorch: the specification of every kernel."""
