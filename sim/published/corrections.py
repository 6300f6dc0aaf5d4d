"""What the published simulator of BitMoD leaves out, one switch each.

The rules are those of `published`; with no switch on they hold to the last digit. The list follows
what a reader of that simulator finds missing in it; a few gaps have no switch, because nothing is
known that could take their place: the group scales of ANT and OliVe, how their 8-bit multipliers
take 16-bit keys and values, bank conflicts, and logic energy that depends on the data.
"""

from dataclasses import dataclass, field, fields
from typing import Any


def _correction(what: str, source: str) -> Any:
    return field(default=False, metadata={"what": what, "source": source})


@dataclass(frozen=True, slots=True)
class Corrections:
    """What a run models although the published simulator leaves it out; all False: as published.

    `CORRECTIONS` tells in words, and with its source, what each switch does.
    """

    attention_shapes: bool = _correction(
        "attention per key head: scores n = c, k = head_dim, values n = head_dim, k = c, and the "
        "query heads of a key head as rows, instead of the published shapes",
        "authors' repo: abdelfattah-lab/BitMoD-HPCA-25 bitmod_sim/pe_array.py",
    )
    kv_bits: bool = _correction(
        "keys and values at the precision that the PE takes (BitMoD 8 bits in 4 cycles, the others "
        "16 bits) instead of 16 bits at the latency of the linear layers",
        "authors' repo: abdelfattah-lab/BitMoD-HPCA-25 bitmod_sim/{accelerator,test_bitmod}.py",
    )
    causal: bool = _correction(
        "a prefill computes and moves only what the causal mask leaves, instead of the full square",
        "(derived) from the definition of causal attention, in whole tiles of the array",
    )
    selector_bits: bool = _correction(
        "BitMoD stores the 2-bit selector of a group (3 and 4 bits) and the 16-bit scale of a "
        "channel, not only the 8-bit group scale; what ANT and OliVe store is not known",
        "BitMoD (HPCA 2025), section III-C: 8 + 2 bits a group, FP16 scale a channel",
    )
    pipeline: bool = _correction(
        "pipeline fill, systolic skew and accumulator drain once per product, and at least 8 "
        "cycles between two groups on a PE with a serial scale unit",
        "BitMoD (HPCA 2025), Fig. 5 and 6; sim/accelerator/hardware.py (12 cycles, FP16 2)",
    )
    one_array: bool = _correction(
        "the array of the prefill in decode too, instead of one of another shape",
        "BitMoD (HPCA 2025), Fig. 6: 4 x 4 tiles of 8 x 8 PEs",
    )
    half_buffers: bool = _correction(
        "double buffering: half a buffer holds the operands in use (of the one that stays, too: an "
        "upper bound); the first tile's loads and the last tile's compute and stores show",
        "(derived) from double buffering; the published rule overlaps perfectly",
    )
    dram_timing: bool = _correction(
        "the efficiency of a DDR4-3200 channel after row misses (three streams) and refresh, and "
        "the latency of a product's first access",
        "sim/memory/dram.py, ddr4-3200",
    )
    vector_unit: bool = _correction(
        "softmax, norms, rotary embedding and activation functions on a vector unit, not overlapped"
        " (cycles only: its energy is not modelled)",
        "sim/workload/vector.py, 64 lanes",
    )
    generated_tokens: bool = _correction(
        "256 generated tokens, as the text says, instead of the 20 of the plots",
        "BitMoD (HPCA 2025), section V; authors' repo: abdelfattah-lab/BitMoD-HPCA-25 "
        "bitmod_sim/plot/speedup_plot.ipynb, num_token_generate = 20",
    )
    growing_cache: bool = _correction(
        "each generated token attends to all tokens before it, instead of to 256",
        "(derived) from the definition of generation",
    )
    encoders: bool = _correction(
        "energy and area of BitMoD's term encoders, 1.86 mW and 2419 um2 for 8 x 8 PEs",
        "BitMoD (HPCA 2025), Table X",
    )
    port_accesses: bool = _correction(
        "two SRAM reads for a step of BitMoD, whose ports are half as wide as a step's operands, "
        "instead of one",
        "authors' repo: abdelfattah-lab/BitMoD-HPCA-25 bitmod_sim/accelerator.py",
    )
    sram_leakage: bool = _correction(
        "leakage of both buffers over the run time (ports outside the table leak like the nearest)",
        "CACTI 7, 28 nm itrs-hp 1r1w",
    )
    dram_standing: bool = _correction(
        "refresh and standby energy of one DDR4-3200 channel over the run time (25.6 GB/s of the "
        "study's 32: a lower bound)",
        "sim/memory/dram.py, ddr4-3200",
    )
    place_and_route: bool = _correction(
        "the factor of 1.5 for place and route in the area as in the energy",
        "authors' repo: abdelfattah-lab/BitMoD-HPCA-25 bitmod_sim/pe_array.py, PR_SCALING",
    )


#: Switches of `Corrections`: name -> (what it does, source).
CORRECTIONS: dict[str, tuple[str, str]] = {
    switch.name: (switch.metadata["what"], switch.metadata["source"])
    for switch in fields(Corrections)
}
