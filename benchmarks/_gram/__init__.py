"""The parts of gram.py: its sections, what they have to know of a CPU and of a GPU, and how large they are."""
