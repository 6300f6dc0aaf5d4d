"""`verify` at the level of proofs: no vectors, every input."""

from bitwright.quant import Progress

from .formal import Proof, prove_netlist, prove_table
from .pe import find_design
from .technology import resolve_technology
from .verification import FORMAL, NETLIST_TECHNOLOGY, VerifyRow

TIMEOUT_S = 300.0  #: of one proof


def prove(
    pe: str,
    progress: Progress | None = None,
    *,
    verilog: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> list[VerifyRow]:
    """Prove a PE's decoders equal to their value tables, and its netlist to its RTL.

    The netlist is that of the verified design, mapped to Nangate45; registers are cuts, so a proof
    holds for every state and every number of cycles (`formal.prove_netlist`).

    Args:
        pe: Name of the PE.
        progress: Called per proof.
        verilog: Text in place of the generator's Verilog.
        timeout_s: Limit of one proof. One that does not end is reported as not finished.

    Returns:
        A row per decoder and one for the netlist; `vectors` is 0, since nothing is sampled.
    """
    design = find_design(pe)
    decoders = design.decoders()
    rows: list[VerifyRow] = []

    def report(what: str) -> None:
        if progress:
            progress(len(rows), len(decoders) + 1, what)

    for part in decoders:
        report(part.top)
        proof = prove_table(part.text, part.top, part.inputs, part.table, timeout_s=timeout_s)
        rows.append(_row(pe, part.top.removeprefix(f"{design.top}_"), "value table", proof))
    report("netlist")
    technology = resolve_technology(NETLIST_TECHNOLOGY)
    text = verilog or design.verilog()
    proof = prove_netlist(text, design.top, technology, timeout_s=timeout_s)
    rows.append(_row(pe, "netlist", "verilog", proof))
    return rows


def _row(pe: str, what: str, against: str, proof: Proof) -> VerifyRow:
    note = ""
    if not proof.proved:
        note = f"{pe} {what}: {proof.status} after {proof.seconds:.0f} s"
        note += f" ({proof.note})" if proof.note else ""
    elif proof.bound:
        note = f"{pe} {what}: equal from clock edge {proof.bound} on"
    if proof.counterexample is not None:
        note += f": {proof.counterexample.differences} at {proof.counterexample.inputs}"
    return VerifyRow(
        pe=pe,
        mode=what,
        level=FORMAL,
        realisation="proof",
        against=against,
        vectors=0,
        mismatches=int(proof.status in ("refuted", "unmatched")),
        note=note,
        seconds=proof.seconds,
        finished=proof.status != "timeout",
    )
