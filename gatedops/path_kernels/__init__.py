"""Kernels of models, and regression with a kernel.

npk takes the steps of a network (network), whose weights must be independent (ties), turns them into terms (terms,
compile_steps) and these into a program of the conv_gram family (moments, program_builder), and runs the program
(images); fully connected networks take a shorter way (dense). paths has npf and npv. ntk differentiates row by row
(tangents), if the rows are independent (separate_rows).
"""
