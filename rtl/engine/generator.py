"""The GEMM engine: operand buffers, sequencer, a tile of PEs, column units and a result buffer.

`EngineDesign` is one engine; `bitwright.sim.array` defines what it does in which cycle.

Ports beside `clk` and `rst`: `job_valid`, `job_ready` and the fields of a job (`job_tiles`, ...);
`x_valid`, `x_ready`, `x_data` with one activation word, row 0 lowest; `w_valid`, `w_ready`,
`w_data` with one weight word, column 0 lowest; `y_valid`, `y_ready`, `y_data` with one row of
results, column 0 lowest, and `y_last` with a tile's last row; `state` (`State`); the PE's set-up
ports.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyrtl import Block, Const, Input, MemBlock, Output, Register, WireVector, concat, select

from bitwright.quant import InputError
from bitwright.rtl import pe
from bitwright.sim import array

from .cells import Cells, find_cells
from .column_unit import column_unit
from .control import COUNT, JOB_FIELDS, Beat, Sequencer, delayed, joined, split
from .instance import Place, Sockets, instantiate
from .operand_buffer import OperandBuffer

cleared = pe.logic.cleared


@dataclass(frozen=True)
class EngineDesign:
    """A tile of `rows` x `cols` PEs and everything around it."""

    pe: str
    rows: int = 4  #: tokens side by side
    cols: int = 4  #: output channels side by side
    x_depth: int = 64  #: activation words that fit, a power of two
    w_depth: int = 64  #: weight words that fit
    result_rows: int = 0  #: result words that fit; 0: as many as never stall
    cells: Cells = field(init=False, repr=False, compare=False)
    config: array.ArrayConfig = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        cells = find_cells(self.pe)
        object.__setattr__(self, "cells", cells)
        config = array.ArrayConfig(
            rows=self.rows,
            cols=self.cols,
            latency=cells.latency,
            scale_cycles=cells.scale_cycles,
            per_group=cells.per_group,
            x_depth=self.x_depth,
            w_depth=self.w_depth,
            result_rows=self.result_rows,
        )
        object.__setattr__(self, "config", config)
        if self.rows * self.cols > 1024:
            raise InputError(
                f"rows x cols is {self.rows} x {self.cols}; at most 1024 PEs in one module, "
                "put several engines side by side"
            )

    @property
    def top(self) -> str:
        """Module name, for example `engine_bitmod_4x4`."""
        return f"engine_{self.pe.replace('-', '_')}_{self.rows}x{self.cols}"

    @property
    def job_widths(self) -> Mapping[str, int]:
        """Fields of a job and their widths."""
        return {**dict.fromkeys(JOB_FIELDS, COUNT), **self.cells.job_ports}

    @property
    def input_widths(self) -> Mapping[str, int]:
        """Every input but the clock, in order."""
        return {
            "rst": 1,
            **self.cells.setup_ports,
            "job_valid": 1,
            **{f"job_{name}": bits for name, bits in self.job_widths.items()},
            "x_valid": 1,
            "x_data": self.rows * sum(self.cells.x_ports.values()),
            "w_valid": 1,
            "w_data": self.cols * sum(self.cells.w_ports.values()),
            "y_ready": 1,
        }

    @property
    def output_widths(self) -> Mapping[str, int]:
        """Every output, in order."""
        return {
            "job_ready": 1,
            "x_ready": 1,
            "w_ready": 1,
            "state": 3,
            "y_valid": 1,
            "y_last": 1,
            "y_data": self.cols * self.cells.y_bits,
        }

    def block(self) -> Block:
        """The engine as one PyRTL block."""
        return self._block(instantiate)

    def _block(self, place: Place) -> Block:
        cells, config = self.cells, self.config
        with pe.logic.design() as block:
            ports = {name: Input(bits, name) for name, bits in self.input_widths.items()}
            rst = ports["rst"]
            fields = {name: ports[f"job_{name}"] for name in self.job_widths}
            control = Sequencer(fields, ports["job_valid"], cells.order, rst)
            buffers = {
                "x": OperandBuffer(
                    "x", config.x_depth, ports["x_valid"], ports["x_data"], control.x_words, rst
                ),
                "w": OperandBuffer(
                    "w", config.w_depth, ports["w_valid"], ports["w_data"], control.w_words, rst
                ),
            }
            x, w = buffers["x"].operand, buffers["w"].operand
            # Rows of the result buffer that are full or promised to tiles under way.
            reserved = Register(config.result_rows.bit_length(), "reserved")
            beat, state, planes = control.issue(
                (x.missing, x.taken),
                (w.missing, w.taken),
                spacing=config.spacing,
                room=reserved <= config.result_rows - config.rows,
                per_group=config.per_group,
            )
            for name, plane in zip(("x", "w"), planes, strict=True):
                job = control.job
                buffers[name].connect(beat, job[f"{name}_window"], job[f"{name}_uses"], plane)

            x_width, w_width = sum(cells.x_ports.values()), sum(cells.w_ports.values())
            rows = [
                split(x.word[r * x_width : (r + 1) * x_width], cells.x_ports)
                for r in range(self.rows)
            ]
            columns = [
                split(w.word[c * w_width : (c + 1) * w_width], cells.w_ports)
                for c in range(self.cols)
            ]
            setup = {name: ports[name] for name in cells.setup_ports}
            sums = cells.array(rows, columns, beat, control.job, setup, rst, place)
            y, y_last, stored = self._column_units(sums, beat, rst)
            outputs = self._results(y, y_last, stored, ports["y_ready"], beat, reserved, rst)
            outputs |= {
                "job_ready": control.ready, "x_ready": x.ready, "w_ready": w.ready, "state": state,
            }  # fmt: skip
            for name, bits in self.output_widths.items():
                out = Output(bits, name)
                out <<= outputs[name]
        return block

    def _column_units(
        self, sums: list[list[WireVector]], beat: Beat, rst: WireVector
    ) -> tuple[WireVector, WireVector, WireVector]:
        """Hand-over registers and the columns behind them: a row of results, whether it is a
        tile's last one, and whether it is one at all."""
        cells, latency = self.cells, self.config.latency
        arriving = delayed(beat.ends, latency, "arriving", rst)
        results = delayed(beat.results, latency, "results", rst)
        first = delayed(beat.first, latency, "first_group")
        left = Register(self.rows.bit_length(), "rows_left")
        left.next <<= cleared(
            select(arriving, Const(self.rows, len(left)), pe.bitmod.counted_down(left)), rst
        )
        finished, is_first = Register(1, "finished"), Register(1, "column_first")
        finished.next <<= select(arriving, results, finished)
        is_first.next <<= select(arriving, first, is_first)
        turn = left != 0
        row = []
        for c, column in enumerate(sums):
            row.append(column_unit(cells, c, column, arriving, turn, is_first))
        return joined(row), left == 1, turn & finished

    def _results(
        self,
        y: WireVector,
        y_last: WireVector,
        stored: WireVector,
        ready: WireVector,
        beat: Beat,
        reserved: Register,
        rst: WireVector,
    ) -> dict[str, WireVector]:
        """The result buffer, a FIFO of rows."""
        bits = self.config.result_rows.bit_length() - 1
        memory = MemBlock(len(y) + 1, max(bits, 1), name="result_memory", max_read_ports=1)
        write, read = Register(max(bits, 1), "result_write"), Register(max(bits, 1), "result_read")
        level = Register(bits + 1, "result_level")
        valid = level != 0
        taken = valid & ready & ~rst
        if bits == 0:  # one word: addresses stay 0
            write.next <<= Const(0, 1)
            read.next <<= Const(0, 1)
        else:
            write.next <<= cleared((write + stored)[:bits], rst)
            read.next <<= cleared((read + taken)[:bits], rst)
        memory[write] <<= MemBlock.EnabledWrite(concat(y_last, y), stored)
        level.next <<= cleared((level + stored - taken)[: bits + 1], rst)
        promised = select(
            beat.results,
            Const(self.rows, len(reserved)),
            Const(0, len(reserved)),
        )
        reserved.next <<= cleared((reserved + promised - taken)[: len(reserved)], rst)
        word = memory[read]
        return {"y_valid": valid, "y_last": word[-1], "y_data": word[:-1]}

    def verilog(self) -> str:
        """The engine as Verilog: the PE, everything around the PEs, and the top that joins them."""
        sockets = Sockets()
        inner = pe.logic.to_verilog(self._block(sockets), f"{self.top}_control")
        assert sockets.part is not None
        part = pe.logic.to_verilog(sockets.part, f"{self.top}_pe")
        ports = {name: ("input", bits) for name, bits in self.input_widths.items()}
        ports |= {name: ("output", bits) for name, bits in self.output_widths.items()}
        top = sockets.wrapper(self.top, f"{self.top}_control", f"{self.top}_pe", ports)
        return f"{part}\n{inner}\n{top}"
