"""Proofs by SAT: a netlist against its RTL, a decoder against its value table.

A netlist is proved equal to the RTL that it was mapped from for every input and every register
state. The registers are cut: their outputs are inputs that both sides share, their data pins are
outputs to be compared, so that what is left is one combinational problem, and a proof of it is a
proof for every number of cycles (a bisimulation), without reset and without bound.

How registers are paired:

- by name and bit, or, where synthesis lost the name, by what they do; a netlist may hold the
  complement. A wrong pair cannot make a proof pass. Initial values play no part;
- a register of the RTL that the netlist lacks may be constant, or a copy of another one. That is
  proved first, by induction: whatever the registers hold at power-up, it is so after one clock
  edge, or after the next one given what is then known. `Proof.bound` counts these edges. Every
  state of the netlist then equals a state of the RTL, for ever after;
- any other register that only one side has is an input of that side alone, so that a proof says
  that nothing depends on it. Without a proof the result is `unmatched`, which is a failure.

Trusted:

- Yosys' Verilog front end, `proc`, `flatten`, and `techmap` and `aigmap`, which expand the cells of
  the RTL (an adder, a shifter) to AND gates and inverters. Synthesis uses the first ones too, so an
  error in them would be on both sides. Its optimisations, its mapping to cells and ABC's
  restructuring are not trusted: they are what is proved;
- the cells' functions in the technology (`netlist_models`);
- ABC's equivalence checkers `cec` and `&cec`, when they say that two networks are equal. A
  difference that they find is evaluated here on both sides before it is reported;
- this file: reading Yosys' JSON, pairing registers, writing AIGER.

SAT cannot compare two multipliers of unlike structure, nor two trees of adders. The RTL is
therefore read in several ways (`READINGS`), the plainest first. A multiplier whose operands have up
to 24 bits together is replaced by Booth's, as synthesis builds it, after that circuit was compared
with Python's product for every pair of operands, so nothing more has to be trusted. If this does
not finish, `alumacc` merges adders as synthesis does; then that pass is trusted too, and
`Proof.note` says so.
"""

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitwright.quant import InputError, Progress, cache_folder, write_text

from .netlist_models import cell_models
from .synth import synthesise
from .technology import Technology
from .tools import digest, run_tool
from .yosys import run_yosys, yosys_version

_CACHE_FORMAT = "1"  # part of every key: raise it when a proof's meaning changes


@dataclass(frozen=True)
class Counterexample:
    """Inputs and registers with which the two sides differ, found by ABC and evaluated here."""

    inputs: Mapping[str, int]  #: port -> value
    registers: Mapping[str, int]  #: bit of a register, by its name in the RTL -> value
    #: What differs, "y[3]" or "next acc[0]" -> its bit in the RTL or table, and in the netlist.
    differences: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Proof:
    """What came out of a proof."""

    design: str  #: top module
    #: "proved"; "refuted", with a counterexample; "unmatched", registers that cannot be paired;
    #: "timeout".
    status: str
    seconds: float
    inputs: int  #: bits, without the clock
    registers: int  #: bits, in the RTL
    outputs: int  #: bits
    #: Clock edges after which the sides are equal, whatever their registers held; 0: at once.
    bound: int | None = None
    counterexample: Counterexample | None = None
    note: str = ""  #: how the RTL was read, what happened to registers

    @property
    def proved(self) -> bool:
        return self.status == "proved"


# ------------------------------------------------------------------ AND-inverter graphs


class Aig:
    """An AND-inverter graph.

    A literal is twice the number of a node, plus 1 if it is inverted; node 0 is constant 0. Equal
    nodes are built once.
    """

    def __init__(self) -> None:
        self.fanins: list[tuple[int, int] | None] = [None]  #: of AND nodes; fanins come first
        self._known: dict[tuple[int, int], int] = {}

    def variable(self) -> int:
        """A new input; its literal."""
        self.fanins.append(None)
        return 2 * len(self.fanins) - 2

    def both(self, a: int, b: int) -> int:
        """a AND b."""
        if a > b:
            a, b = b, a
        if a == 0 or a ^ b == 1:
            return 0
        if a == 1 or a == b:
            return b
        node = self._known.get((a, b))
        if node is None:
            self.fanins.append((a, b))
            node = self._known[a, b] = 2 * len(self.fanins) - 2
        return node

    def choose(self, condition: int, yes: int, no: int) -> int:
        """`yes` where `condition` is 1, else `no`."""
        if yes == no:
            return yes
        return self.both(self.both(condition, yes) ^ 1, self.both(condition ^ 1, no) ^ 1) ^ 1

    def cone(self, roots: Iterable[int]) -> list[int]:
        """Nodes that the roots depend on, fanins before what uses them, without node 0."""
        seen, waiting = {0}, [root >> 1 for root in roots]
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += [literal >> 1 for literal in self.fanins[node] or ()]
        return sorted(seen - {0})

    def insert(self, other: "Aig", roots: Sequence[int], given: Mapping[int, int]) -> list[int]:
        """Copy what the roots of another graph depend on.

        Args:
            other: The other graph.
            roots: Literals there.
            given: Node there -> literal here; of all variables in the cone, or of nodes above them.

        Returns:
            The roots' literals here.
        """
        here = {0: 0, **given}
        for node in other.cone(roots):
            if node not in here:
                fanins = other.fanins[node]
                assert fanins is not None, "a variable without a counterpart"
                here[node] = self.both(*(here[f >> 1] ^ f & 1 for f in fanins))
        return [here[root >> 1] ^ root & 1 for root in roots]

    def evaluate(self, roots: Sequence[int], values: Mapping[int, np.ndarray]) -> list[np.ndarray]:
        """Bits of the roots for many patterns at once.

        Args:
            roots: Literals.
            values: Node of a variable -> its bits, in unsigned words of one shape.
        """
        shape = next(iter(values.values())) if values else np.zeros(1, np.uint64)
        bits = {0: np.zeros_like(shape), **values}

        def of(literal: int) -> np.ndarray:
            return ~bits[literal >> 1] if literal & 1 else bits[literal >> 1]

        for node in self.cone(roots):
            fanins = self.fanins[node]
            if fanins is not None and node not in bits:
                bits[node] = of(fanins[0]) & of(fanins[1])
        return [of(root) for root in roots]

    def aiger(self, roots: Sequence[int], variables: Sequence[int]) -> bytes:
        """The roots in binary AIGER.

        Args:
            roots: Literals.
            variables: Literals of the inputs, in order; all that the roots depend on.
        """
        number = {0: 0, **{v >> 1: i for i, v in enumerate(variables, 1)}}
        ands = [node for node in self.cone(roots) if self.fanins[node] is not None]
        number |= {node: i for i, node in enumerate(ands, len(variables) + 1)}

        def code(literal: int) -> int:
            return 2 * number[literal >> 1] + (literal & 1)

        count = len(variables)
        body = [f"aig {count + len(ands)} {count} 0 {len(roots)} {len(ands)}\n".encode()]
        body += [f"{code(root)}\n".encode() for root in roots]
        for node in ands:
            fanins = self.fanins[node]
            assert fanins is not None
            low, high = sorted(map(code, fanins))
            body += [_varint(2 * number[node] - high), _varint(high - low)]
        return b"".join(body)


def _varint(value: int) -> bytes:
    """AIGER's numbers: seven bits a byte, lowest first, the top bit set in all but the last."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


# ------------------------------------------------------------------ circuits


@dataclass(frozen=True)
class _Register:
    """One flip-flop."""

    names: tuple[str, ...]  #: of its output, as "acc[3]"; the first one is the one to show
    q: int  #: literal of its variable
    d: int  #: literal of its next state


@dataclass(frozen=True)
class _Circuit:
    """A module as a graph: inputs and registers are variables."""

    aig: Aig
    inputs: Mapping[str, int]  #: "a[3]" -> literal, without the clock
    outputs: Mapping[str, int]
    registers: Sequence[_Register]
    names: Mapping[str, int]  #: name of a net's bit -> literal, where it is a register or inverted
    clock: str | None


#: Ways of reading the RTL -> the Yosys passes behind `proc` and `flatten`.
READINGS: Mapping[str, str] = {
    "as written": "",
    "adders merged by alumacc": "alumacc t:$mul %n\n",
    "widths reduced by wreduce, adders merged by alumacc": """\
wreduce t:$mul t:$dff %u %n
opt_expr
alumacc t:$mul %n
opt_expr
opt_clean
""",
}

_LARGEST_EXHAUSTIVE = 24  #: operand bits of a multiplier that is compared for every pair


def _read(files: Mapping[str, str], top: str, passes: str, timeout_s: float) -> _Circuit:
    """Run Yosys' front end on Verilog; multipliers are left to `_circuit`."""
    commands = f"""\
read_verilog {" ".join(files)}
hierarchy -check -top {top}
proc
flatten
memory_collect
memory_map
{passes}techmap t:$mul %n
techmap t:$mul %n
opt_clean
aigmap t:$mul %n
write_json out.json
"""
    _, written = run_yosys(commands, files, ["out.json"], timeout_s=timeout_s)
    return _circuit(json.loads(written["out.json"])["modules"][top])


def _circuit(module: Mapping[str, Any]) -> _Circuit:
    """A module of Yosys' JSON, in which each bit of a net has a number."""
    aig = Aig()
    literal: dict[int | str, int] = {"0": 0, "1": 1}
    drivers: dict[int, Mapping[str, Any]] = {}
    flip_flops: dict[int, Mapping[str, Any]] = {}
    clocks = set()
    for cell in module["cells"].values():
        kind, pins = cell["type"], cell["connections"]
        if kind == "$_DFF_P_":
            flip_flops[pins["Q"][0]] = pins
            clocks.add(pins["C"][0])
        elif kind in ("$_AND_", "$_NOT_", "$mul"):
            drivers |= dict.fromkeys(pins["Y"], cell)
        elif kind != "$scopeinfo":
            raise InputError(
                f"a cell {kind} cannot be proved; use rising-edge flip-flops with synchronous reset"
            )
    inputs, clock = {}, None
    for port, details in module["ports"].items():
        if details["direction"] == "inout":
            raise InputError(f"port {port} is inout; use inputs and outputs")
        if details["direction"] == "input":
            for bit, name in _named(port, details["bits"]):
                if bit in clocks:
                    clock = name
                else:
                    inputs[name] = literal[bit] = aig.variable()
    if len(clocks) > 1 or (clocks and clock is None):
        raise InputError("registers with more than one clock, or a clock that is no input")
    names: dict[int, list[str]] = {}
    # Yosys' own names are of no use for pairing. A whole register comes before parts of it.
    nets = [(n, d["bits"]) for n, d in module["netnames"].items() if not d.get("hide_name")]
    for net, bits in sorted(nets, key=lambda n: (not flip_flops.keys() >= set(n[1]), -len(n[1]))):
        for bit, name in _named(net, bits):
            names.setdefault(bit, []).append(name)
    for bit in flip_flops:
        literal[bit] = aig.variable()

    def find(root: int | str) -> int:
        waiting = [root]
        while waiting:
            bit = waiting[-1]
            if bit in literal:
                waiting.pop()
                continue
            if bit not in drivers:
                what = f"net {names[bit][0]}" if bit in names else "a net"
                raise InputError(f"{what} has no driver, is undefined (x), or is the clock as data")
            cell = drivers[bit]
            pins = cell["connections"]
            needed = [*pins["A"], *pins.get("B", ())]
            missing = [b for b in needed if b not in literal]
            if missing:
                waiting += missing
                continue
            operands = [literal[b] for b in needed]
            if cell["type"] == "$_NOT_":
                values = [operands[0] ^ 1]
            elif cell["type"] == "$_AND_":
                values = [aig.both(*operands)]
            else:
                values = _multiply(aig, cell["parameters"], operands)
            literal.update(zip(pins["Y"], values, strict=True))
        return literal[root]

    outputs = {
        name: find(bit)
        for port, details in module["ports"].items()
        if details["direction"] == "output"
        for bit, name in _named(port, details["bits"])
    }
    registers = [
        _Register(tuple(names.get(q, ["(unnamed)"])), literal[q], find(pins["D"][0]))
        for q, pins in flip_flops.items()
    ]
    states = {register.q >> 1 for register in registers}
    alias = {
        name: literal[bit]
        for bit, own in names.items()
        if literal.get(bit, 0) >> 1 in states
        for name in own
    }
    return _Circuit(aig, inputs, outputs, registers, alias, clock)


def _named(name: str, bits: Sequence[Any]) -> list[tuple[Any, str]]:
    """The bits of a net, lowest first, with their names."""
    if len(bits) == 1:
        return [(bits[0], name)]
    return [(bit, f"{name}[{i}]") for i, bit in enumerate(bits)]


# ------------------------------------------------------------------ multipliers


def _multiply(aig: Aig, parameters: Mapping[str, str], operands: Sequence[int]) -> list[int]:
    """Bits of the product; operands are the bits of A, then those of B."""
    a_bits, y_bits, is_signed = (
        int(parameters[name], 2) for name in ("A_WIDTH", "Y_WIDTH", "A_SIGNED")
    )
    a, b, signed = operands[:a_bits][:y_bits], operands[a_bits:][:y_bits], bool(is_signed)
    # Verilog extends operands to the width of the result; modulo that, the sign does not matter.
    readings = [(_trimmed(a, signed), _trimmed(b, signed), signed)]
    if len(a) == len(b) == y_bits:
        readings.append((_trimmed(a, not signed), _trimmed(b, not signed), not signed))
    a, b, signed = min(readings, key=lambda r: len(r[0]) + len(r[1]))
    circuit = _multiplier(len(a), len(b), min(y_bits, len(a) + len(b)), signed)
    names = [name for port, bits in (("a", a), ("b", b)) for _, name in _named(port, bits)]
    given = {circuit.inputs[n] >> 1: o for n, o in zip(names, [*a, *b], strict=True)}
    product = aig.insert(circuit.aig, list(circuit.outputs.values()), given)
    return product + [product[-1] if signed else 0] * (y_bits - len(product))


def _trimmed(bits: Sequence[int], signed: bool) -> list[int]:
    """A number without the bits that only extend it."""
    bits = list(bits)
    while len(bits) > 1 and bits[-1] == (bits[-2] if signed else 0):
        bits.pop()
    return bits


@cache
def _multiplier(a_bits: int, b_bits: int, y_bits: int, signed: bool) -> _Circuit:
    """A multiplier: Booth's, compared with Python's product; of wide operands the plain one.

    Raises:
        RuntimeError: A product is wrong.
    """
    sign = "signed " if signed else ""
    text = f"""\
module multiplier (input {sign}[{a_bits - 1}:0] a, input {sign}[{b_bits - 1}:0] b,
                   output {sign}[{y_bits - 1}:0] y);
  assign y = a * b;
endmodule
"""
    small = a_bits + b_bits <= _LARGEST_EXHAUSTIVE
    # Every cell is mapped, multipliers too small for Booth's included.
    passes = "booth\ntechmap\n" if small else "techmap\n"
    circuit = _read({"multiplier.v": text}, "multiplier", passes, 600)
    if small and not _multiplies(circuit, a_bits, b_bits, signed):
        raise RuntimeError(f"Yosys' {a_bits} x {b_bits} multiplier is wrong")
    return circuit


def _multiplies(circuit: _Circuit, a_bits: int, b_bits: int, signed: bool) -> bool:
    """Whether `y` is the product of `a` and `b`, modulo its width, for every pair."""
    total = 1 << a_bits + b_bits
    chunk = min(total, 1 << 16)
    outputs = list(circuit.outputs.values())
    variables = list(circuit.inputs.values())
    for start in range(0, total, chunk):
        pairs = np.arange(start, start + chunk)
        a, b = pairs & (1 << a_bits) - 1, pairs >> a_bits
        bits = [pairs >> i & 1 for i in range(a_bits + b_bits)]
        if signed:
            a -= a >> a_bits - 1 << a_bits
            b -= b >> b_bits - 1 << b_bits
        values = {v >> 1: _packed(x) for v, x in zip(variables, bits, strict=True)}
        for i, got in enumerate(circuit.aig.evaluate(outputs, values)):
            if not np.array_equal(_unpacked(got, chunk), (a * b) >> min(i, 63) & 1):
                return False
    return True


def _packed(bits: np.ndarray) -> np.ndarray:
    """Bits as bytes of eight."""
    return np.packbits(bits.astype(np.uint8))


def _unpacked(words: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(words, count=count)


# ------------------------------------------------------------------ ABC


@dataclass(frozen=True)
class _Goal:
    """What must be equal."""

    name: str
    ours: int  #: literal
    theirs: int


def _abc() -> Path:
    """The `yosys-abc` of the pyosys wheel."""
    yosys_version()
    spec = find_spec("pyosys")
    assert spec is not None
    path = Path(next(iter(spec.submodule_search_locations or ()))) / "yosys-abc"
    if not path.is_file():
        raise InputError(f"proofs need {path.name}, which this pyosys lacks; install pyosys 0.70")
    return path


def _equal(
    aig: Aig,
    goals: Sequence[_Goal],
    variables: Sequence[int],
    timeout_s: float,
    engine: str = "&cec -C 10000",
) -> tuple[str, dict[int, int]]:
    """Whether both literals of every goal are equal for all values of the variables.

    Returns:
        "proved"; "refuted" and node -> bit of a counterexample; or "timeout".
    """
    open_goals = [goal for goal in goals if goal.ours != goal.theirs]
    if not open_goals:
        return "proved", {}
    used = set(aig.cone([x for goal in open_goals for x in (goal.ours, goal.theirs)]))
    inputs = [v for v in variables if v >> 1 in used]
    if not inputs:
        return "refuted", {}  # unequal constants
    if timeout_s <= 0:
        return "timeout", {}
    limit = max(1, round(timeout_s))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bitwright-abc-") as name:
        folder = Path(name)
        (folder / "ours.aig").write_bytes(aig.aiger([g.ours for g in open_goals], inputs))
        (folder / "theirs.aig").write_bytes(aig.aiger([g.theirs for g in open_goals], inputs))
        command = [str(_abc()), "-q", f"{engine} -T {limit} ours.aig theirs.aig"]
        try:
            log = run_tool("ABC", command, folder, {"TMPDIR": name}, limit + 1)
        except RuntimeError:
            if time.monotonic() - started >= limit:
                return "timeout", {}
            raise
    if re.search(r"^Networks are equivalent\.", log, re.MULTILINE):
        return "proved", {}
    if "NOT EQUIVALENT" in log:
        return "refuted", _pattern(log, inputs)
    return "timeout", {}


def _pattern(log: str, inputs: Sequence[int]) -> dict[int, int]:
    """The counterexample that ABC prints.

    `&cec` prints one number, "INPUT: a = 10'h388.  OUTPUT: ...", of which the lowest bit is the
    first input, with six bits or more; `cec` prints "INPUT: pi0 = 1'h0, pi1 = 1'h1, ...".
    """
    match = re.search(r"INPUT:(.*?)\.\s+OUTPUT", log, re.DOTALL)
    value, width = 0, 0
    for digits in re.finditer(r"(\d+)'h([0-9a-fA-F]+)", match[1] if match else ""):
        value |= int(digits[2], 16) << width
        width += int(digits[1])
    if width < len(inputs):
        raise RuntimeError(f"ABC's counterexample has {width} of {len(inputs)} bits: {log[-500:]}")
    return {v >> 1: value >> i & 1 for i, v in enumerate(inputs)}


def _one(bits: Mapping[int, int], variables: Iterable[int]) -> dict[int, np.ndarray]:
    """A single pattern for `Aig.evaluate`; variables that it does not name are 0."""
    return {v >> 1: np.array([255 * bits.get(v >> 1, 0)], np.uint8) for v in variables}


def _differences(
    aig: Aig, goals: Sequence[_Goal], bits: Mapping[int, int], variables: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """The goals that a pattern breaks, each with its two bits."""
    roots = [x for goal in goals for x in (goal.ours, goal.theirs)]
    values = [int(v[0]) & 1 for v in aig.evaluate(roots, _one(bits, variables))]
    pairs = zip(goals, values[::2], values[1::2], strict=True)
    return {goal.name: (a, b) for goal, a, b in pairs if a != b}


# ------------------------------------------------------------------ a netlist


class _Attempt(NamedTuple):
    """One run of ABC."""

    reading: int  #: index in READINGS
    engine: str  #: ABC's command, without the limit of time and the files
    share: float  #: of the time limit


#: ABC's first checker: rewriting, balancing and SAT sweeping in turn, with growing effort.
_FIRST = "cec -n"
#: Its newer one. With few conflicts it passes over a node that it cannot prove, such as a sum
#: inside a tree of adders that synthesis has arranged anew, and often finds that the nodes above
#: it are equal all the same.
_NEWER = "&cec -C 1000"

#: In the order in which they are made. The first one proves nearly all PEs, within seconds.
_ATTEMPTS = (
    _Attempt(0, _FIRST, 0.1),
    _Attempt(0, _NEWER, 0.05),
    _Attempt(1, _FIRST, 0.1),
    _Attempt(2, _FIRST, 0.1),
    _Attempt(1, _NEWER, 0.1),
    _Attempt(2, _NEWER, 0.2),
    _Attempt(0, "&cec -C 100000", 1.0),
)


def prove_netlist(
    text: str,
    top: str,
    technology: Technology,
    clock_ps: float | None = None,
    *,
    timeout_s: float = 300,
    progress: Progress | None = None,
) -> Proof:
    """Prove that what `synthesise` makes of a module equals it.

    A proof is kept in the cache; anything else is tried again.

    Args:
        text: Verilog of the module and those it uses.
        top: Its name.
        technology: The cells.
        clock_ps: Target period of the mapping; None for the technology's own.
        timeout_s: Limit of the proof; the mapping is not counted.
        progress: Called before each attempt.

    Raises:
        InputError: The module cannot be cut at its registers: latches, asynchronous resets, more
            than one clock, nets without a driver; or a tool is missing.
        RuntimeError: Yosys refuses the Verilog.
    """
    target = technology.clock_ps if clock_ps is None else clock_ps
    result = synthesise(text, top, technology, target)
    models = cell_models(technology, result.cells_by_type)
    return prove_equal(
        text, f"{result.netlist}\n{models}", top, timeout_s=timeout_s, progress=progress
    )


def prove_equal(
    text: str,
    netlist: str,
    top: str,
    *,
    timeout_s: float = 300,
    progress: Progress | None = None,
) -> Proof:
    """Prove that two modules of one name and the same ports are equal, registers as cuts.

    Args:
        text: Verilog of the RTL.
        netlist: Verilog of the netlist, models of its cells included.
        top: Name of the module in both.
        timeout_s: Limit.
        progress: Called before each attempt.

    Raises:
        InputError: As `prove_netlist`, or the ports differ.
    """
    key = digest(_CACHE_FORMAT, yosys_version(), top, text, netlist)
    stored = cache_folder("proofs") / f"{key}.json"
    proof = _load(stored)
    if proof is None:
        proof = _prove_equal(text, netlist, top, timeout_s, progress)
        if proof.proved:
            _store(stored, proof)
    return proof


def _prove_equal(
    text: str, netlist: str, top: str, timeout_s: float, progress: Progress | None
) -> Proof:
    started = time.monotonic()

    def left() -> float:
        return timeout_s - (time.monotonic() - started)

    status, note, bound, found, shape = "timeout", "", None, None, (0, 0, 0)
    readings = list(READINGS)
    pairs: dict[int, _Pairing] = {}
    try:
        theirs = _read({"netlist.v": netlist}, top, "", left())
        for step, (reading, engine, share) in enumerate(_ATTEMPTS):
            if left() <= 0:
                break
            if progress:
                progress(step, len(_ATTEMPTS), f"{top}, RTL {readings[reading]}")
            if reading not in pairs:
                ours = _read({"rtl.v": text}, top, READINGS[readings[reading]], left())
                shape = len(ours.inputs), len(ours.registers), len(ours.outputs)
                pairs[reading] = _pair(ours, theirs, left())
            pairing = pairs[reading]
            limit = min(left(), max(5.0, timeout_s * share))
            status, bits = _equal(pairing.aig, pairing.goals, pairing.variables, limit, engine)
            if status == "timeout":
                continue
            notes = [f"RTL {readings[reading]}", *pairing.known]
            if status == "proved":
                bound = pairing.bound
                if pairing.alone:
                    notes.append(f"nothing depends on {pairing.alone} registers of one side")
            else:
                found = pairing.counterexample(bits)
                if pairing.unpaired:
                    status = "unmatched"
                    notes = [*pairing.unpaired, *notes]
            note = "; ".join(notes)
            break
    except RuntimeError:
        # A tool that was stopped because the time is up; anything else is an error.
        if left() > 0:
            raise
    if status == "timeout":
        note = f"not finished in {timeout_s:g} s"
    seconds = round(time.monotonic() - started, 3)
    return Proof(top, status, seconds, *shape, bound, found, note)


@dataclass(frozen=True)
class _Pairing:
    """Two circuits over shared variables."""

    aig: Aig
    variables: Sequence[int]
    goals: Sequence[_Goal]
    inputs: Mapping[str, int]  #: name -> literal
    registers: Mapping[str, int]
    bound: int
    known: Sequence[str]  #: what registers of the RTL hold that the netlist lacks
    alone: int  #: other registers that only one side has
    unpaired: Sequence[str]  #: those of them that something reads

    def counterexample(self, bits: Mapping[int, int]) -> Counterexample:
        """What a pattern breaks.

        Raises:
            RuntimeError: Nothing: ABC was wrong.
        """
        broken = _differences(self.aig, self.goals, bits, self.variables)
        if not broken:
            raise RuntimeError("ABC's counterexample is none: both sides agree on it")

        def value(literal: int) -> int:
            return bits.get(literal >> 1, 0) ^ literal & 1

        registers = {name: value(literal) for name, literal in self.registers.items()}
        return Counterexample(
            _ports({n: value(x) for n, x in self.inputs.items()}), _ports(registers), broken
        )


def _ports(bits: Mapping[str, int]) -> dict[str, int]:
    """Values of whole ports or registers from those of their bits."""
    values: dict[str, int] = {}
    for name, bit in bits.items():
        match = re.fullmatch(r"(.*)\[(\d+)\]", name)
        whole, place = (match[1], int(match[2])) if match else (name, 0)
        values[whole] = values.get(whole, 0) | bit << place
    return values


def _pair(ours: _Circuit, theirs: _Circuit, timeout_s: float) -> _Pairing:
    """Put both circuits over shared inputs and registers.

    Raises:
        InputError: Their ports differ.
    """
    _same_ports(ours, theirs)
    aig = Aig()
    # The clock of a side without registers is an input that it does not read.
    ports = {**ours.inputs, **theirs.inputs}
    inputs = {n: aig.variable() for n in ports if n not in (ours.clock, theirs.clock)}
    partner = _by_name(ours, theirs)
    partner |= _by_behaviour(ours, theirs, partner)
    spare = sorted(set(range(len(theirs.registers))) - {j for j, _ in partner.values()})
    known = _Known(ours, partner, timeout_s)
    # Node of each side's variable -> literal here.
    here = {literal >> 1: inputs.get(name, 0) for name, literal in ours.inputs.items()}
    there = {literal >> 1: inputs.get(name, 0) for name, literal in theirs.inputs.items()}
    for i, register in enumerate(ours.registers):
        if i not in known.value:
            here[register.q >> 1] = aig.variable()
    for i in known.value:
        base, inverted = known.root(i)
        literal = 0 if base is None else here[ours.registers[base].q >> 1]
        here[ours.registers[i].q >> 1] = literal ^ inverted
    for i, (j, inverted) in partner.items():
        there[theirs.registers[j].q >> 1] = here[ours.registers[i].q >> 1] ^ inverted
    for j in spare:
        there[theirs.registers[j].q >> 1] = aig.variable()

    names = list(ours.outputs)
    roots = [ours.outputs[n] for n in names] + [ours.registers[i].d for i in partner]
    left = aig.insert(ours.aig, roots, here)
    roots = [theirs.outputs[n] for n in names]
    roots += [theirs.registers[j].d ^ inverted for j, inverted in partner.values()]
    right = aig.insert(theirs.aig, roots, there)
    names += [f"next {ours.registers[i].names[0]}" for i in partner]
    goals = [_Goal(*goal) for goal in zip(names, left, right, strict=True)]

    registers = {r.names[0]: here[r.q >> 1] for r in ours.registers}
    variables = [2 * n for n, fanins in enumerate(aig.fanins) if n and fanins is None]
    used = set(aig.cone([*left, *right]))
    lonely = [i for i in range(len(ours.registers)) if i not in partner and i not in known.value]
    needed = [ours.registers[i] for i in lonely if here[ours.registers[i].q >> 1] >> 1 in used]
    extra = [theirs.registers[j] for j in spare if there[theirs.registers[j].q >> 1] >> 1 in used]
    unpaired = [
        f"{side} register {r.names[0]} has no counterpart"
        for side, rs in (("RTL", needed), ("netlist", extra))
        for r in rs
    ]
    return _Pairing(
        aig=aig,
        variables=variables,
        goals=goals,
        inputs=inputs,
        registers=registers,
        bound=known.bound,
        known=known.notes,
        alone=len(lonely) + len(spare),
        unpaired=unpaired,
    )


def _same_ports(ours: _Circuit, theirs: _Circuit) -> None:
    clocks = {clock for clock in (ours.clock, theirs.clock) if clock}
    if len(clocks) > 1:
        raise InputError(f"RTL and netlist have different clocks: {', '.join(sorted(clocks))}")
    for what, a, b in (
        ("input", ours.inputs, theirs.inputs),
        ("output", ours.outputs, theirs.outputs),
    ):
        odd = sorted((set(a) ^ set(b)) - clocks)
        if odd:
            raise InputError(f"only one of RTL and netlist has {what} {odd[0]}; give both the same")
    # A side without registers has the clock as a plain input.
    for circuit in (ours, theirs):
        for clock in clocks & set(circuit.inputs):
            used = circuit.aig.cone([*circuit.outputs.values(), *(r.d for r in circuit.registers)])
            if circuit.inputs[clock] >> 1 in used:
                raise InputError(f"clock {clock} is used as data")


def _by_name(ours: _Circuit, theirs: _Circuit) -> dict[int, tuple[int, int]]:
    """Registers paired by name: ours -> theirs, and 1 if theirs holds the complement."""
    index = {register.q >> 1: j for j, register in enumerate(theirs.registers)}
    pairs: dict[int, tuple[int, int]] = {}
    taken = set()
    for i, register in enumerate(ours.registers):
        for name in register.names:
            literal = theirs.names.get(name)
            if literal is not None and index[literal >> 1] not in taken:
                pairs[i] = index[literal >> 1], literal & 1
                taken.add(index[literal >> 1])
                break
    return pairs


def _by_behaviour(
    ours: _Circuit, theirs: _Circuit, known: Mapping[int, tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    """Pairs of registers whose names are lost, guessed from what they do.

    A library whose flip-flops have only an inverted output, as ASAP7's, leaves no name where the
    inverter behind it is merged into other logic. All registers start with one colour. In each
    round those of a colour get one random pattern, and the colours are refined by the next states
    that follow.
    """
    left = [i for i in range(len(ours.registers)) if i not in known]
    used = {j for j, _ in known.values()}
    right = [j for j in range(len(theirs.registers)) if j not in used]
    best: dict[int, tuple[int, int]] = {}
    if not left or not right:
        return best
    rng = np.random.default_rng(0)
    for inverted in (1, 0):
        here, there = {}, {}
        for name, literal in ours.inputs.items():
            here[literal >> 1] = there[theirs.inputs[name] >> 1] = _random(rng)
        for i, (j, complement) in known.items():
            bits = here[ours.registers[i].q >> 1] = _random(rng)
            there[theirs.registers[j].q >> 1] = ~bits if complement else bits
        colours = {0: dict.fromkeys(left, ""), 1: dict.fromkeys(right, "")}
        classes = 0
        while classes < len(set(colours[0].values())):
            classes = len(set(colours[0].values()))
            shown = {
                colour: _random(np.random.default_rng(int(digest(colour), 16)))
                for colour in {*colours[0].values(), *colours[1].values()}
            }
            for side, circuit, values in ((0, ours, here), (1, theirs, there)):
                flip = side * inverted * 255
                registers = [circuit.registers[k] for k in colours[side]]
                own = zip(registers, colours[side].values(), strict=True)
                values.update({r.q >> 1: shown[colour] ^ flip for r, colour in own})
                states = circuit.aig.evaluate([r.d for r in registers], values)
                for k, bits in zip(list(colours[side]), states, strict=True):
                    pattern = (bits ^ flip).astype(np.uint8).tobytes().hex()
                    colours[side][k] = digest(colours[side][k], pattern)
        pairs: dict[int, tuple[int, int]] = {}
        for i, colour in colours[0].items():
            twin = next((j for j, other in colours[1].items() if other == colour), None)
            if twin is not None:
                pairs[i] = twin, inverted
                del colours[1][twin]
        if len(pairs) > len(best):
            best = pairs
    return best


def _random(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, 256, np.uint8)


class _Known:
    """What unpaired registers of the RTL are known to hold, by induction.

    In each round the next states of the registers left are simulated and then proved to be a
    constant, or the next state of another register or its complement, given what earlier rounds
    established. What round n establishes holds from clock edge n on, whatever the registers held.
    """

    def __init__(self, circuit: _Circuit, paired: Iterable[int], timeout_s: float) -> None:
        #: Register -> a register it equals (None: the constant 0), and 1 if it is the complement.
        self.value: dict[int, tuple[int | None, int]] = {}
        self.bound = 0
        self._circuit = circuit
        self._paired = sorted(paired)
        self._deadline = time.monotonic() + timeout_s
        remaining = self._lonely()
        while remaining:
            new = self._round(sorted(remaining))
            if not new:
                break
            self.value |= new
            self.bound += 1
            remaining -= set(new)

    @property
    def notes(self) -> list[str]:
        """What is known, in words."""
        notes = []
        for i, (base, inverted) in self.value.items():
            what = f"constant {inverted}"
            if base is not None:
                kind = "the complement" if inverted else "a copy"
                what = f"{kind} of {self._circuit.registers[base].names[0]}"
            notes.append(f"{self._circuit.registers[i].names[0]} is {what}")
        return notes

    def root(self, i: int) -> tuple[int | None, int]:
        """`value`, followed to a register about which nothing is known."""
        base, inverted = self.value[i]
        while base is not None and base in self.value:
            base, more = self.value[base]
            inverted ^= more
        return base, inverted

    def _lonely(self) -> set[int]:
        """Unpaired registers that outputs or paired registers depend on, in any number of steps."""
        circuit, paired = self._circuit, set(self._paired)
        lonely: set[int] = set()
        index = {r.q >> 1: i for i, r in enumerate(circuit.registers) if i not in paired}
        waiting = [*circuit.outputs.values(), *(circuit.registers[i].d for i in paired)]
        while waiting:
            new = {index[n] for n in circuit.aig.cone(waiting) if n in index} - lonely
            lonely |= new
            waiting = [circuit.registers[i].d for i in new]
        return lonely

    def _round(self, remaining: Sequence[int]) -> dict[int, tuple[int | None, int]]:
        """What holds of the registers left, given what is known."""
        aig, circuit = Aig(), self._circuit
        free = [x >> 1 for x in circuit.inputs.values()]
        free += [r.q >> 1 for i, r in enumerate(circuit.registers) if i not in self.value]
        given = {node: aig.variable() for node in free}
        variables = list(given.values())
        for i in self.value:
            root, inverted = self.root(i)
            literal = 0 if root is None else given[circuit.registers[root].q >> 1]
            given[circuit.registers[i].q >> 1] = literal ^ inverted
        order = [*self._paired, *remaining]
        states = aig.insert(circuit.aig, [circuit.registers[i].d for i in order], given)
        state = dict(zip(order, states, strict=True))
        rng = np.random.default_rng(0)
        patterns = {v >> 1: rng.integers(0, 256, 512, np.uint8) for v in variables}
        proved: dict[int, tuple[int | None, int]] = {}
        ruled_out: set[int] = set()
        while True:
            guesses = self._guesses(aig, state, patterns, set(remaining))
            waiting = [i for i in guesses if i not in proved and i not in ruled_out]
            if not waiting:
                return proved
            i = waiting[0]
            base, inverted = guess = guesses[i]
            other = inverted if base is None else state[base] ^ inverted
            limit = min(10.0, self._deadline - time.monotonic())
            status, bits = _equal(aig, [_Goal("", state[i], other)], variables, limit)
            if status == "proved":
                proved[i] = guess
            elif status == "refuted" and bits:
                # The counterexample joins the patterns, so that this guess does not come back.
                one = _one(bits, variables)
                patterns = {node: np.append(patterns[node], one[node]) for node in patterns}
            else:
                ruled_out.add(i)

    def _guesses(
        self,
        aig: Aig,
        state: Mapping[int, int],
        patterns: Mapping[int, np.ndarray],
        remaining: set[int],
    ) -> dict[int, tuple[int | None, int]]:
        """What the patterns allow; a register that another one is compared with has none."""
        first: dict[bytes, int | None] = {}
        guesses: dict[int, tuple[int | None, int]] = {}
        for i, bits in zip(state, aig.evaluate(list(state.values()), patterns), strict=True):
            if not first:
                first[bytes(len(bits))] = None
            for inverted, pattern in ((0, bits), (1, ~bits)):
                if pattern.tobytes() in first:
                    if i in remaining:
                        guesses[i] = first[pattern.tobytes()], inverted
                    break
            else:
                first[bits.tobytes()] = i
        return guesses


# ------------------------------------------------------------------ a value table


_LARGEST_TABLE = 20  #: input bits

Values = int | Mapping[str, int] | None
Table = Callable[..., Values] | Mapping[Any, Values]


def prove_table(
    text: str,
    top: str,
    inputs: Sequence[tuple[str, int]],
    table: Table,
    *,
    timeout_s: float = 300,
) -> Proof:
    """Prove that a decoder's Verilog is a table, for all inputs.

    The table becomes a tree of multiplexers made from its numbers.

    Args:
        text: Verilog of the module and those it uses. Registers are looked through: outputs are
            compared as they are when the inputs have been held long enough.
        top: Its name.
        inputs: Its input ports (name, bits), lowest place of the table's index first, all but the
            clock; at most 20 bits.
        table: Called with the inputs' unsigned values, or indexed with their tuple. Gives the value
            of the only output, or output -> value; negative numbers are two's complement. None
            for inputs that do not occur, where any output will do.
        timeout_s: Limit.

    Raises:
        InputError: Ports or widths are wrong, a value does not fit, or registers feed back.
    """
    started = time.monotonic()
    circuit = _read({"rtl.v": text}, top, "", timeout_s)
    bits = [name for port, width in inputs for _, name in _named(port, range(width))]
    read = circuit.aig.cone([*circuit.outputs.values(), *(r.d for r in circuit.registers)])
    for name in set(bits) ^ set(circuit.inputs):
        if name in bits or circuit.inputs[name] >> 1 in read:
            raise InputError(f"inputs (={list(inputs)}) are not those of {top}: see {name}")
    if len(bits) > _LARGEST_TABLE:
        raise InputError(f"{top} has {len(bits)} input bits; a table has at most {_LARGEST_TABLE}")
    aig = Aig()
    variables = {name: aig.variable() for name in bits}
    given = {circuit.inputs[name] >> 1: literal for name, literal in variables.items()}
    outputs = dict(zip(circuit.outputs, _settled(circuit, aig, given), strict=True))
    wanted, cared = _columns(inputs, table, circuit)
    order = list(variables.values())
    care = _tree(aig, cared, order)
    goals = [
        _Goal(name, aig.both(care, literal), aig.both(care, _tree(aig, wanted[name], order)))
        for name, literal in outputs.items()
    ]
    status, pattern = _equal(aig, goals, order, timeout_s - (time.monotonic() - started))
    found = None
    if status == "refuted":
        values = {n: pattern.get(v >> 1, 0) for n, v in variables.items()}
        found = Counterexample(_ports(values), {}, _differences(aig, goals, pattern, order))
    entries = int(cared.sum())
    return Proof(
        top,
        status,
        round(time.monotonic() - started, 3),
        len(bits),
        len(circuit.registers),
        len(outputs),
        0 if status == "proved" else None,
        found,
        f"table of {entries} entries" + ("" if cared.all() else f", {cared.size - entries} unused"),
    )


def _settled(circuit: _Circuit, aig: Aig, given: Mapping[int, int]) -> list[int]:
    """The outputs' literals in `aig` with every register replaced by its next state."""
    next_state = {register.q >> 1: register.d for register in circuit.registers}
    here = dict(given)
    waiting: list[int] = []

    def settle(roots: Sequence[int]) -> list[int]:
        for node in circuit.aig.cone(roots):
            if node in next_state and node not in here:
                if node in waiting:
                    raise InputError("registers feed back: this is no decoder with a pipeline")
                waiting.append(node)
                (here[node],) = settle([next_state[node]])
                waiting.pop()
        return aig.insert(circuit.aig, roots, here)

    return settle(list(circuit.outputs.values()))


def _columns(
    inputs: Sequence[tuple[str, int]],
    table: Table,
    circuit: _Circuit,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The table as a bit per index and output, bool [2**bits], and where it has an entry."""
    ports: dict[str, list[str]] = {}
    for name in circuit.outputs:
        ports.setdefault(name.partition("[")[0], []).append(name)
    size = 1 << sum(width for _, width in inputs)
    columns = {name: np.zeros(size, bool) for name in circuit.outputs}
    cared = np.ones(size, bool)
    # The first input has the lowest place of the index, so it runs fastest.
    ranges = [range(1 << width) for _, width in reversed(inputs)]
    for index, reverse in enumerate(product(*ranges)):
        place = reverse[::-1]
        entry = table(*place) if callable(table) else table.get(place)
        if entry is None:
            cared[index] = False
            continue
        values = entry if isinstance(entry, Mapping) else dict.fromkeys(ports, int(entry))
        if set(values) != set(ports) or (len(ports) > 1 and not isinstance(entry, Mapping)):
            raise InputError(f"table entry {place} must give outputs {', '.join(ports)}")
        for port, names in ports.items():
            value = int(values[port])
            if not -(1 << len(names) - 1) <= value < 1 << len(names):
                raise InputError(
                    f"table entry {place}: {value} does not fit {port}, {len(names)} bits"
                )
            for i, name in enumerate(names):
                columns[name][index] = value >> i & 1
    return columns, cared


def _tree(aig: Aig, column: np.ndarray, variables: Sequence[int]) -> int:
    """A column as multiplexers; variables are the bits of the index, lowest first."""
    literals = column.astype(np.int64)  # literal 0 is constant 0, literal 1 constant 1
    for variable in variables:
        pairs, which = np.unique(literals.reshape(-1, 2), axis=0, return_inverse=True)
        chosen = [aig.choose(variable, int(high), int(low)) for low, high in pairs]
        literals = np.array(chosen, np.int64)[which.reshape(-1)]
    return int(literals[0])


# ------------------------------------------------------------------ cache


def _store(path: Path, proof: Proof) -> None:
    body = json.dumps(asdict(proof))
    write_text(path, json.dumps({"sha256": digest(body), "proof": body}))


def _load(path: Path) -> Proof | None:
    """The stored proof; None if there is none or it is damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["sha256"] != digest(document["proof"]):
            return None
        return Proof(**json.loads(document["proof"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
