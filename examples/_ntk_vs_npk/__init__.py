"""The parts of ntk_vs_npk.py: drawing value weights, and the picture."""
