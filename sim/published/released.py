"""The released simulator of BitMoD (R1), which is not the one behind the figures.

R1 is abdelfattah-lab/BitMoD-HPCA-25, bitmod_sim/. It follows the rules of `published` but for three
things, read from its files {pe_array,accelerator,test_baseline,test_ant,test_olive,test_bitmod}.py
(commit e445a5f; they were read, not run, since they need the CACTI executable and the models):

- attention has its own shapes, per key head: scores n = context, k = head_dim, values n = head_dim,
  k = context, for rows = tokens * heads / kv_heads; all heads of a layer count as one product in
  the DRAM traffic;
- keys and values have 8 bits in BitMoD, stepped in ceil(8 / 2) cycles, and 16 bits in the others;
  their words in the SRAM count at that precision;
- ANT and OliVe have other weight precisions, one per model for both phases.

Its README says that it reproduces the figures; with these rules it does not. There are no
published cycles of R1. With the shapes of the six models its formulas give the totals of
tests/sim/test_released.py. ANT and OliVe need the same cycles to generate a token of Llama-2-13B:
both have 4 bits there, and every product waits for DRAM in both arrays, 64 x 16 and 72 x 16.
"""

from dataclasses import replace

from .corrections import Corrections
from .designs import HPCA25_DESIGNS, PublishedDesign, per_model

#: What R1 corrects of the rules behind the figures.
RELEASED_CORRECTIONS = Corrections(attention_shapes=True, kv_bits=True)

_SIM = "authors' repo: abdelfattah-lab/BitMoD-HPCA-25 bitmod_sim/"


def _design(name: str, script: str, bits: dict[str, float] | None = None) -> PublishedDesign:
    design = replace(HPCA25_DESIGNS[name], source=f"{_SIM}{script}")
    return design if bits is None else replace(design, prefill_bits=bits, decode_bits=bits)


#: The five accelerators with the precisions of R1.
RELEASED_DESIGNS: dict[str, PublishedDesign] = {
    "fp16": _design("fp16", "test_baseline.py"),
    "ant": _design("ant", "test_ant.py", per_model(5, 5, 5.25, 5, 4, 5)),
    "olive": _design("olive", "test_olive.py", per_model(4, 4, 4, 4, 4, 4.5)),
    "bitmod-lossless": _design("bitmod-lossless", "test_bitmod.py"),
    "bitmod-lossy": _design("bitmod-lossy", "test_bitmod.py"),
}
