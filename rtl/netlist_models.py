"""Verilog models of standard cells, so that a mapped netlist can be simulated.

The models have no delays: a netlist is compared with its RTL cycle by cycle.
"""

import re
from collections.abc import Iterable, Mapping

from bitwright.quant import InputError

from .cell_functions import Expression, read_function
from .technology import Cell, Technology


def cell_models(technology: Technology, only: Iterable[str] | None = None) -> str:
    """One Verilog module per cell.

    Args:
        technology: Where the cells' functions come from.
        only: Names of the cells wanted, e.g. those of a netlist; None for all.

    Raises:
        InputError: The technology has no such cell, or a function cannot be read.
    """
    names = sorted(technology.cells if only is None else set(only))
    unknown = [name for name in names if name not in technology.cells]
    if unknown:
        raise InputError(
            f"technology {technology.name} has no function for cell {unknown[0]}; "
            "use Liberty files that describe it, or mark it dont_use"
        )
    return "\n".join(_model(technology.cells[name]) for name in names)


def _model(cell: Cell) -> str:
    names = {pin: pin for pin in cell.pins}
    ports = [f"input {pin}" for pin in cell.pins] + [f"output {pin}" for pin in cell.outputs]
    lines = [f"module {cell.name} ({', '.join(ports)});"]
    if cell.ff is not None:
        state, inverse = cell.ff.state
        names |= {state: "stored", inverse: "~stored"}
        edges = [f"posedge {_wire(lines, 'clocked_on', cell.ff.clocked_on, cell)}"]
        body = f"stored <= {to_verilog(cell.ff.next_state, names)};"
        # Clear comes last, so it is outermost: it wins where both are active.
        for what, condition, value in (("preset", cell.ff.preset, 1), ("clear", cell.ff.clear, 0)):
            if condition:
                wire = _wire(lines, what, condition, cell)
                edges.append(f"posedge {wire}")
                body = f"if ({wire}) stored <= 1'b{value}; else {body}"
        lines += ["  reg stored;", f"  always @({' or '.join(edges)}) {body}"]
    lines += [
        f"  assign {pin} = {to_verilog(output.function, names)};"
        for pin, output in cell.outputs.items()
    ]
    return "\n".join([*lines, "endmodule", ""])


def _wire(lines: list[str], name: str, condition: str, cell: Cell) -> str:
    """A net that carries the condition: the pin itself, or a wire added to `lines`."""
    text = to_verilog(condition, {pin: pin for pin in cell.pins})
    if text in cell.pins:
        return text
    lines.append(f"  wire {name} = {text};")
    return name


def to_verilog(function: str, names: Mapping[str, str]) -> str:
    """A Liberty expression in Verilog, fully parenthesised.

    Verilog binds `^` looser than AND, Liberty tighter.

    Args:
        function: E.g. "(A1 & A2)'".
        names: Each name that may occur -> its Verilog.

    Raises:
        InputError: A name or the grammar is wrong.

    >>> to_verilog("!(A B) + C ^ D", {n: n.lower() for n in "ABCD"})
    '(~(a & b)) | (c ^ d)'
    """
    return _text(read_function(function, names), names)


def _text(expression: Expression, names: Mapping[str, str]) -> str:
    if expression.op == "name":
        return names[expression.text]
    if expression.op == "constant":
        return f"1'b{expression.text}"
    parts = [_closed(_text(part, names)) for part in expression.parts]
    return f"~{parts[0]}" if expression.op == "~" else f" {expression.op} ".join(parts)


def _closed(text: str) -> str:
    """The expression as an operand: in parentheses unless it is a single name or number."""
    return text if re.fullmatch(r"[\w']+", text) else f"({text})"
