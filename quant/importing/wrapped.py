"""What tensors that are a `QuantizedTensor` and something beside it have in common."""

from bitwright.quant import QuantizedTensor


class Wrapped:
    """The shape of `tensor`."""

    tensor: QuantizedTensor

    @property
    def n(self) -> int:
        """Rows: output channels."""
        return self.tensor.n

    @property
    def k(self) -> int:
        """Columns: input channels."""
        return self.tensor.k

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k)."""
        return self.tensor.shape

    @property
    def groups(self) -> int:
        """Groups per row, a ragged last one included."""
        return self.tensor.groups
