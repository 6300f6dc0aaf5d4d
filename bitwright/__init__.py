"""From an LLM's weights to silicon cost: quantise, simulate, generate RTL, verify, synthesise.

The work is done in the subpackages `quant`, `kernels`, `sim`, `rtl` and `experiments`.
"""

import os

# numba's, torch's and numpy's threads are three pools on the same cores. An idle thread of OpenMP
# spins for about 300,000 pauses, 10 ms and more, before it sleeps, and holds up the next library
# for so long. 2,000 are enough to bridge the gaps inside one computation.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__version__ = "0.1.0"
