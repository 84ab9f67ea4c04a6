"""Every op as a composite of torch operations, which runs on devices that have no kernels of their own."""
