"""Operand buffer: a circular memory that reads a window several times and fills up behind it."""

from typing import NamedTuple

from pyrtl import MemBlock, Register, WireVector, select

from bitwright.rtl import pe

from .control import COUNT, Beat

cleared = pe.logic.cleared


class Operand(NamedTuple):
    """What a buffer shows in a cycle."""

    ready: WireVector  #: there is room for a word
    taken: WireVector  #: a word is being taken
    missing: WireVector  #: the words of the next step are not all there yet
    word: WireVector  #: at the present address


class OperandBuffer:
    """Memory, loader and window reader of one operand (`bitwright.sim.array`, top).

    Built in two steps, because the sequencer needs `missing` and the buffer needs the beat:
    `operand` after construction, then `connect`.
    """

    def __init__(
        self,
        name: str,
        depth: int,
        valid: WireVector,
        data: WireVector,
        words: WireVector,
        rst: WireVector,
    ) -> None:
        bits = depth.bit_length() - 1  # of an address; a count of words has one more
        self._bits, self._rst, self._words = bits, rst, words
        self._held = Register(bits + 1, f"{name}_held")
        self._arrived = Register(1, f"{name}_arrived")
        self._level = Register(bits + 1, f"{name}_level")
        self._offset, self._use = Register(COUNT, f"{name}_offset"), Register(COUNT, f"{name}_use")
        self._base = Register(bits, f"{name}_base")
        self._address = Register(bits, f"{name}_address")
        write = Register(bits, f"{name}_write")
        memory = MemBlock(len(data), bits, name=f"{name}_memory", max_read_ports=1)
        ready = self._held != depth
        taken = valid & ready & ~rst
        memory[write] <<= MemBlock.EnabledWrite(data, taken)
        write.next <<= cleared((write + taken)[:bits], rst)
        missing = (self._offset + words) > self._level
        self.operand = Operand(ready, taken, missing, memory[self._address])

    def connect(self, beat: Beat, window: WireVector, uses: WireVector, plane: WireVector) -> None:
        """Advance by a beat.

        Args:
            beat: What is issued in this cycle.
            window: Words that are read again, a field of the job.
            uses: Times that they are read.
            plane: Of the next beat, counted from the first word of its step.
        """
        rst, taken = self._rst, self.operand.taken
        after = (self._offset + self._words)[:COUNT]
        wraps = beat.step_ends & (after == window)
        last_use = (self._use + 1)[:COUNT] == uses
        released = wraps & last_use
        count = len(self._held)
        freed = cleared(window.truncate(count), ~released)
        self._held.next <<= cleared((self._held + taken - freed)[:count], rst)
        self._level.next <<= cleared((self._level + self._arrived - freed)[:count], rst)
        self._arrived.next <<= taken

        offset = cleared(select(beat.step_ends, after, self._offset), wraps | rst)
        use = cleared(select(wraps, (self._use + 1)[:COUNT], self._use), released | rst)
        base = cleared((self._base + freed.truncate(self._bits))[: self._bits], rst)
        self._offset.next <<= offset
        self._use.next <<= use
        self._base.next <<= base
        # The address is a register, so the memory may be a synchronous SRAM.
        self._address.next <<= (base + offset.truncate(self._bits) + plane)[: self._bits]
