"""Quantised tensors of other tools, exactly: GPTQ and AWQ checkpoints, and GGUF's blocks.

Start with `import_tensors` (a file or folder); `from_...` and `to_...` take and give single layers.
"""

from .awq import from_awq, to_awq
from .gguf import from_gguf_blocks, to_gguf_blocks
from .gptq import from_gptq, to_gptq
from .offset import OffsetTensor
from .permuted import PermutedTensor
from .reading import ImportedTensor, import_tensors

__all__ = [
    "ImportedTensor",
    "OffsetTensor",
    "PermutedTensor",
    "from_awq",
    "from_gguf_blocks",
    "from_gptq",
    "import_tensors",
    "to_awq",
    "to_gguf_blocks",
    "to_gptq",
]
