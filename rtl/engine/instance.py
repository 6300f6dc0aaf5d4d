"""Copies of a PyRTL block inside another one, so that an array builds its PE once."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from pyrtl import Block, Const, Input, LogicNet, Output, Register, WireVector, working_block


class Place(Protocol):
    """How an engine puts a PE into its array."""

    def __call__(
        self, part: Block, inputs: Mapping[str, WireVector], name: str
    ) -> dict[str, WireVector]:
        """One more instance of `part`; the wires of its outputs by name."""


def instantiate(part: Block, inputs: Mapping[str, WireVector], name: str) -> dict[str, WireVector]:
    """Copy a block into the working block: everything in one module.

    Args:
        part: The block; it has no memories.
        inputs: A wire for each of its inputs, of the same width.
        name: Put before the names of its registers.

    Returns:
        The wires of its outputs, by name.

    Raises:
        ValueError: An input is missing, of another width or unknown, or the block has a memory.
    """
    _check(part, inputs)
    block = working_block()
    copies: dict[WireVector, WireVector] = {}
    outputs: dict[str, WireVector] = {}
    # By name: PyRTL keeps wires and nets in sets.
    for wire in sorted(part.wirevector_set, key=lambda wire: wire.name):
        if isinstance(wire, Input):
            copies[wire] = inputs[wire.name]
        elif isinstance(wire, Const):
            copies[wire] = Const(wire.val, len(wire))
        elif isinstance(wire, Register):
            copies[wire] = Register(len(wire), f"{name}_{wire.name}")
        else:
            copies[wire] = WireVector(len(wire))
            if isinstance(wire, Output):
                outputs[wire.name] = copies[wire]
    for net in sorted(part.logic, key=lambda net: net.dests[0].name if net.dests else ""):
        if net.op in "m@":
            raise ValueError("a block with a memory cannot be copied")
        args = tuple(copies[arg] for arg in net.args)
        dests = tuple(copies[dest] for dest in net.dests)
        block.add_net(LogicNet(net.op, net.op_param, args, dests))
    return outputs


class Instance(NamedTuple):
    """A module instance beside the block that uses it."""

    name: str
    ports: dict[str, WireVector]  #: port of the module -> port of the block, an input or an output


class Sockets:
    """Leaves blocks outside: the working block gets ports where they are to be connected.

    Verilog puts the parts together again, so that a PE is one module with many instances.
    """

    def __init__(self) -> None:
        self.instances: list[Instance] = []
        self.part: Block | None = None  #: the same for all instances

    def __call__(
        self, part: Block, inputs: Mapping[str, WireVector], name: str
    ) -> dict[str, WireVector]:
        """As `instantiate`."""
        _check(part, inputs)
        if self.part not in (None, part):
            raise ValueError("one part for all sockets")
        self.part = part
        ports: dict[str, WireVector] = {}
        for port, wire in inputs.items():
            ports[port] = Output(len(wire), f"{name}__{port}")
            ports[port] <<= wire
        outputs = {}
        for wire in sorted(part.wirevector_subset(Output), key=lambda wire: wire.name):
            outputs[wire.name] = ports[wire.name] = Input(len(wire), f"{name}__{wire.name}")
        self.instances.append(Instance(name, ports))
        return outputs

    def wrapper(self, top: str, inner: str, part: str, ports: Mapping[str, tuple[str, int]]) -> str:
        """Verilog of the module `top` that connects the block `inner` with its parts.

        Args:
            top: Name of the module.
            inner: Name of the block's module.
            part: Name of the parts' module.
            ports: Port of `top` and of `inner` -> its direction ("input" or "output") and width.
        """
        heads = [f"    {way} {_range(bits)}{name}" for name, (way, bits) in ports.items()]
        nets = {
            wire.name: len(wire) for instance in self.instances for wire in instance.ports.values()
        }
        lines = [f"module {top} (", "    input clk,", ",\n".join(heads), ");"]
        lines += [f"  wire {_range(bits)}{name};" for name, bits in nets.items()]
        names = ["clk", *ports, *nets]
        lines += [f"  {inner} control (", _connections({name: name for name in names}), "  );"]
        for instance in self.instances:
            wired = {"clk": "clk"} | {port: wire.name for port, wire in instance.ports.items()}
            lines += [f"  {part} {instance.name} (", _connections(wired), "  );"]
        return "\n".join([*lines, "endmodule", ""])


def _check(part: Block, inputs: Mapping[str, WireVector]) -> None:
    wanted = {wire.name: len(wire) for wire in part.wirevector_subset(Input)}
    unknown = set(inputs) - set(wanted)
    if unknown:
        raise ValueError(f"the block has no inputs {sorted(unknown)}")
    for name, bits in sorted(wanted.items()):
        given = inputs.get(name)
        if given is None or len(given) != bits:
            raise ValueError(f"input {name} of {bits} bits gets {given}")


def _range(bits: int) -> str:
    return f"[{bits - 1}:0] " if bits > 1 else ""


def _connections(wires: Mapping[str, str]) -> str:
    return ",\n".join(f"    .{port}({wire})" for port, wire in wires.items())
