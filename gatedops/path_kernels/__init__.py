"""Kernels of models, and what is done with a kernel.

npk: from the steps of a network (network; ties: whether its weights are independent) to a list of terms (terms,
compile_steps), to a program of the conv_gram family (moments, program_builder), to the Gram (images; of fully connected
networks: dense). paths: npf and npv. ntk: derivatives row by row (tangents) of rows that are independent
(separate_rows).
"""
