"""Sequencer: takes jobs, issues a beat a cycle, and says why it does not."""

from collections.abc import Mapping
from typing import NamedTuple

from pyrtl import Const, Register, WireVector, concat, select

from bitwright.rtl import pe
from bitwright.sim import array

COUNT = array.COUNT_BITS
State = array.State
register, cleared = pe.logic.register, pe.logic.cleared

#: Fields of every job, in the order of the port, each COUNT bits.
JOB_FIELDS = (
    "tiles", "groups", "steps", "last_steps", "x_window", "x_uses", "w_window", "w_uses",
)  # fmt: skip


class Beat(NamedTuple):
    """What the sequencer tells the array in a cycle; one bit each unless said otherwise."""

    issued: WireVector
    step_ends: WireVector  #: the last beat of a step is issued
    ends: WireVector  #: of a group
    first: WireVector  #: the group that `ends` is the tile's first one
    results: WireVector  #: the group that `ends` gives results
    index: WireVector  #: term, 2 bits
    x_plane: WireVector  #: activation plane, 3 bits
    w_plane: WireVector  #: weight plane, 3 bits


class Sequencer:
    """Job registers, loop counters and the decision of every cycle (`bitwright.sim.array`).

    `job`, `words` and `planes` are there after construction; `issue` needs the operand buffers.
    """

    def __init__(
        self,
        fields: Mapping[str, WireVector],
        valid: WireVector,
        order: str,
        rst: WireVector,
    ) -> None:
        """Args: `order`, what the beats of a step are: "plain" (one), "terms" or "planes"."""
        self._rst, self._order = rst, order
        self.busy = Register(1, "busy")
        self.ready = ~self.busy
        self.taken = valid & ~self.busy & ~rst
        self.job: dict[str, WireVector] = {}
        for name, value in fields.items():
            kept = Register(len(value), f"kept_{name}")
            kept.next <<= select(self.taken, value, kept)
            self.job[name] = kept
        one = Const(1, 4)
        self.x_words = self.job["x_words"] if order == "planes" else one
        self.w_words = self.job["w_words"] if order == "planes" else one

    def issue(
        self,
        x: tuple[WireVector, WireVector],
        w: tuple[WireVector, WireVector],
        *,
        spacing: int,
        room: WireVector,
        per_group: bool,
    ) -> tuple[Beat, WireVector, tuple[WireVector, WireVector]]:
        """The beat of this cycle.

        Args:
            x: Whether activation words are missing, and whether one is being taken.
            w: The same for weights.
            spacing: Cycles from the end of a group to the next, at least.
            room: The result buffer can take a tile.
            per_group: Every group gives results.

        Returns:
            The beat; `state` (3 bits); the planes of the next beat (x, w), 3 bits each.
        """
        job, rst = self.job, self._rst
        step, group, tile = (Register(COUNT, name) for name in ("step", "group", "tile"))
        started = Register(1, "started")
        index, x_plane, w_plane = (
            Register(2, "term"),
            Register(3, "x_plane"),
            Register(3, "w_plane"),
        )
        w_last = w_plane == (self.w_words - 1)[:3]
        last_beat: WireVector = Const(1, 1)
        if self._order == "terms":
            last_beat = index == (job["terms"] - 1)[:2]
        elif self._order == "planes":
            last_beat = w_last & (x_plane == (self.x_words - 1)[:3])
        last_group = group == (job["groups"] - 1)[:COUNT]
        length = select(last_group, job["last_steps"], job["steps"])
        closing = last_beat & (step == (length - 1)[:COUNT])
        giving = closing if per_group else closing & last_group

        wait = Register(max(spacing - 1, 1).bit_length(), "wait")
        missing = x[0] | w[0]
        scale, drain = closing & (wait != 0), giving & ~room
        issued = self.busy & ~missing & ~scale & ~drain & ~rst
        step_ends, ends = issued & last_beat, issued & closing
        wait.next <<= cleared(
            select(ends, Const(spacing - 1, len(wait)), pe.bitmod.counted_down(wait)), rst
        )

        # Loops: plane or term, step, group, tile.
        if self._order == "terms":
            index.next <<= cleared((index + issued)[:2], step_ends | rst)
        else:
            index.next <<= Const(0, 2)
        next_w: WireVector = Const(0, 3)
        next_x: WireVector = Const(0, 3)
        if self._order == "planes":
            next_w = cleared((w_plane + issued)[:3], (issued & w_last) | rst)
            next_x = cleared((x_plane + (issued & w_last))[:3], step_ends | rst)
        w_plane.next <<= next_w
        x_plane.next <<= next_x
        tile_ends = ends & last_group
        job_ends = tile_ends & (tile == (job["tiles"] - 1)[:COUNT])
        step.next <<= cleared((step + step_ends)[:COUNT], ends | rst)
        group.next <<= cleared((group + ends)[:COUNT], tile_ends | rst)
        tile.next <<= cleared((tile + tile_ends)[:COUNT], job_ends | rst)
        self.busy.next <<= cleared(select(self.busy, ~job_ends, self.taken), rst)
        started.next <<= cleared(started | issued, self.taken | rst)

        moving = (x[0] & x[1]) | (w[0] & w[1])
        state = select(
            missing,
            select(
                started,
                select(moving, Const(State.BANDWIDTH, 3), Const(State.OPERAND, 3)),
                Const(State.FILL, 3),
            ),
            select(
                scale,
                Const(State.SCALE, 3),
                select(drain, Const(State.DRAIN, 3), Const(State.COMPUTE, 3)),
            ),
        )
        state = state & self.busy.sign_extended(3)
        first = group == 0
        beat = Beat(issued, step_ends, ends, first, ends & giving, index, x_plane, w_plane)
        return beat, state, (next_x, next_w)


def delayed(wire: WireVector, cycles: int, name: str, rst: WireVector | None = None) -> WireVector:
    """The wire so many cycles later; the registers are cleared by `rst`, if given."""
    for cycle in range(cycles):
        value = wire if rst is None else cleared(wire, rst)
        wire = register(value, f"{name}{cycle + 1}")
    return wire


def split(word: WireVector, widths: Mapping[str, int]) -> dict[str, WireVector]:
    """The fields of a word by name, the first one lowest."""
    fields, low = {}, 0
    for name, bits in widths.items():
        fields[name] = word[low : low + bits]
        low += bits
    return fields


def joined(words: list[WireVector]) -> WireVector:
    """Words side by side, the first one lowest."""
    return concat(*reversed(words)) if len(words) > 1 else words[0]
