"""Operations: one file each, against the same in PyTorch."""
