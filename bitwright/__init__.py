"""From an LLM's weights to silicon cost: quantise, simulate, generate RTL, verify, synthesise.

The work is done in the subpackages `quant`, `kernels`, `sim`, `rtl` and `experiments`.
"""

__version__ = "0.1.0"
