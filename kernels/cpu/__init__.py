"""Kernels for the processor at hand, compiled by numba.

`simd.py` gives numba vector values; `layouts.py` packs weights and activations for them; one file a
family computes. Import the modules themselves; `bitwright.kernels.matmul` chooses among them.
"""
