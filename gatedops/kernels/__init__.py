"""Kernels of models, and what is done with a kernel.

npk: from the steps of a network (network) to a list of terms (terms, compile_steps), to a program of the conv_gram
family (moments, program_builder), to the Gram (images; of fully connected networks: dense). paths: npf and npv.
"""
