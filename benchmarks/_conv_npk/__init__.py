"""The parts of conv_npk.py: kernels before and after training, shifted images, speed, peers, and the picture."""
