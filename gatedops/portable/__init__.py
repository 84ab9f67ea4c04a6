"""Every op as a composite of torch operations: what runs on a device that has no kernels of its own."""
