"""Area of a PE as a simulation takes it, from synthesis."""

from typing import TYPE_CHECKING

from bitwright.quant import cache_folder
from bitwright.sim import PEArea

from .cache_lock import entry_lock

if TYPE_CHECKING:
    from bitwright.rtl import PESynthesis


def area_of(cost: "PESynthesis") -> PEArea:
    """What a synthesis says of a PE."""
    return PEArea(
        pe_um2=cost.area_um2,
        encoder_um2=cost.encoder_um2,
        source=cost.source,
        delay_ps=cost.delay_ps,
        leakage_uw=cost.leakage_uw,
        encoder_leakage_uw=cost.encoder_leakage_uw,
    )


def pe_area(pe: str, technology: str) -> PEArea | None:
    """Area of a PE on a technology; None if this installation cannot synthesise.

    Processes that want the same one synthesise it once.

    Args:
        pe: Name of the PE.
        technology: nangate45, sky130hd or asap7.

    Raises:
        InputError: An unknown name.
    """
    try:
        from bitwright.rtl import synthesise_pe
    except ImportError:
        return None
    with entry_lock(cache_folder("synthesis") / f"{pe}-{technology}"):
        return area_of(synthesise_pe(pe, technology))
