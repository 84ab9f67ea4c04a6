"""What gated_linear.py times: nets of gated layers, and the same nets by plain torch and by cuBLASLt."""
