"""What every loader checks of the tensors it reads."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitwright.quant import InputError

from .config import LlamaConfig


def config_of(file: Path, **fields: Any) -> LlamaConfig:
    """The config, or InputError that names the file it came from."""
    try:
        return LlamaConfig(**fields)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def check_shape(found: tuple[int, ...], name: str, shape: tuple[int, ...], file: Path) -> None:
    """InputError unless a tensor has the shape that the config needs."""
    if found != shape:
        raise InputError(
            f"{file}: tensor {name} has shape {list(found)}, the model's config needs {list(shape)}"
        )


def checked(tensor: torch.Tensor, name: str, shape: tuple[int, ...], file: Path) -> torch.Tensor:
    """The tensor as it is, or InputError on a wrong shape, NaN or infinity."""
    check_shape(tuple(tensor.shape), name, shape, file)
    # A NaN or infinity always reaches the sum, which is much the faster test; finite values may
    # also overflow it. Single-threaded numpy does not stall on a busy machine.
    with np.errstate(invalid="ignore", over="ignore"):
        total = tensor.numpy().sum()
    if not np.isfinite(total) and not tensor.isfinite().all():
        bad = torch.nonzero(~tensor.isfinite())
        at = bad[0].tolist()
        value = tensor[tuple(at)].item()
        raise InputError(
            f"{file}: tensor {name} holds {value} at {at} ({len(bad)} NaN or infinite values); "
            "weights must be finite"
        )
    return tensor
