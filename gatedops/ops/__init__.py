"""Wrappers, fake kernels and derivatives of the torch.library ops, one file per family."""
