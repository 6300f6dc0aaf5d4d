"""What the steps that prune share: which weights stay, by scores, and what a recipe must fit.

A step gives every weight a score. Unstructured pruning zeroes the share `sparsity` of them with the
smallest scores; with a pattern N:M each run of M consecutive inputs of a row keeps its N largest
(the authors of Wanda call the number that is *removed* prune_n). Of equal scores the first weights
go. Weights that are set aside in FP16 are not in the tensor: they score 0 and keep their value.

Pruning comes before rounding: formats see zeros where weights were, and the mask makes them exact.
Steps that choose codes by compensating errors (GPTQ) are refused behind it, for they would move
errors into weights that are not there.
"""

import re
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field, model_validator

from bitwright.quant import FORMATS, InputError

from .base import Algorithm, BlockTask, Phase
from .masked import Pattern, check_columns, check_format, check_group

if TYPE_CHECKING:
    from bitwright.quant import LlamaConfig, Recipe

_MOST = 64  #: M of N:M


class Pruning(Algorithm):
    """A step that takes weights out."""

    phase: ClassVar[Phase] = "prepare"
    prunes: ClassVar[bool] = True
    needs_format: ClassVar[bool] = False
    #: Whether weights compete within their row, not within the whole matrix.
    by_row: ClassVar[bool] = True
    sparsity: float = Field(default=0.5, gt=0, lt=1)  #: share of the weights that goes
    pattern: str = ""  #: "2:4": of 4 consecutive inputs 2 are kept; empty: unstructured

    @model_validator(mode="after")
    def _check_pattern(self) -> "Pruning":
        if not self.pattern:
            return self
        match = re.fullmatch(r"([1-9][0-9]?):([1-9][0-9]?)", self.pattern)
        if match is None or not int(match[1]) < int(match[2]) <= _MOST:
            raise InputError(
                f"pattern {self.pattern!r} of {self.name} is not N:M with 1 <= N < M <= {_MOST}; "
                "2:4 keeps 2 of 4"
            )
        if self.sparsity != 0.5:
            raise InputError(
                f"{self.name} takes sparsity={self.sparsity:g} or pattern={self.pattern}, not "
                "both; leave one out"
            )
        return self

    @property
    def runs(self) -> Pattern | None:
        """N and M, if weights go by a pattern."""
        return Pattern(*map(int, self.pattern.split(":"))) if self.pattern else None

    def check(self, recipe: "Recipe", config: "LlamaConfig") -> None:
        """Refuse what cannot be pruned, before any work.

        Raises:
            InputError: Another step that chooses codes, a format that cannot be
                masked, groups or linears that do not fit the pattern, or a sparsity so small that
                no weight would go.
        """
        for step in recipe.steps:
            if step.phase == "round" and not step.own_form and step.name != "formats":
                raise InputError(
                    f"{step.name} moves rounding errors into weights that {self.name} takes out; "
                    f"leave {step.name} out"
                )
            if step.own_form:
                raise InputError(
                    f"{step.name} has its own form of weights, which {self.name} cannot mask; "
                    "begin the recipe with a format"
                )
        for name, (n, k) in config.linear_shapes().items():
            try:
                if self.runs is not None:
                    check_columns(k, self.runs)
                elif int(self.sparsity * (k if self.by_row else n * k)) == 0:
                    raise InputError(
                        f"sparsity {self.sparsity:g} of {k if self.by_row else n * k:,} weights "
                        "takes none out; ask for more"
                    )
                _, layer, local = name.split(".", 2)
                if recipe.format is None:
                    continue
                own = recipe.uniform_of(int(layer), local)
                assert own.format is not None
                check_format(FORMATS[own.format])
                if self.runs is not None and own.group_size is not None and own.group_size < k:
                    check_group(own.group_size, self.runs)
            except InputError as error:
                raise InputError(f"layer {name}: {error}") from None

    def prune(
        self,
        block: BlockTask,
        name: str,
        scores: Float[np.ndarray, "n k"],
        empty_rows: bool = False,
    ) -> None:
        """Set the mask of a linear and zero what it takes out.

        Args:
            block: The block.
            name: Of the linear.
            scores: How much each weight matters, at least 0.
            empty_rows: Whether a row may lose all its weights; a note says so then.

        Raises:
            InputError: A row would lose all its weights, or a score is NaN or infinite.
        """
        import torch

        w = block.to_round(name)
        try:
            mask = keep_mask(scores, self.sparsity, self.runs, self.by_row)
        except InputError as error:
            raise InputError(f"layer blocks.{block.layer}.{name}: {error}") from None
        emptied = ~mask.any(1) & w.any(1)
        if emptied.any():
            what = (
                f"{self.written()} empties row {int(np.argmax(emptied))} ({int(emptied.sum())} of "
                f"{len(w)} rows in all)"
            )
            if not empty_rows:
                raise InputError(
                    f"layer blocks.{block.layer}.{name}: {what}; lower the sparsity, allow it with "
                    "empty_rows=true, or prune within rows (wanda, or a pattern)"
                )
            block.note(f"{name}: {what}")
        block.masks[name] = mask
        keep = mask.copy()
        for place in block.set_aside.get(name, ()):
            keep[place] = True
        block.weights[name] = torch.from_numpy(np.where(keep, block.matrix(name), np.float32(0)))
        if name in block.clipped:
            block.clipped[name] = np.where(keep, block.clipped[name], np.float32(0))


def keep_mask(
    scores: Float[np.ndarray, "n k"], sparsity: float, pattern: Pattern | None, by_row: bool
) -> Bool[np.ndarray, "n k"]:
    """Where weights stay: True but for the smallest scores, of equal ones the first.

    Args:
        scores: At least 0.
        sparsity: Without a pattern: int(k * sparsity) of every row go, or int(n * k * sparsity)
            of the matrix.
        pattern: N:M; k is a multiple of M.
        by_row: Whether rows are pruned one by one; no matter with a pattern.

    Raises:
        InputError: A score is NaN or infinite.
    """
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise InputError(f"weight [{row}, {column}] or its inputs are NaN or infinite")
    n, k = scores.shape
    width = pattern.of if pattern is not None else k if by_row else n * k
    goes = pattern.of - pattern.kept if pattern is not None else int(width * sparsity)
    runs = scores.reshape(-1, width)
    mask = np.ones(runs.shape, bool)
    np.put_along_axis(mask, np.argsort(runs, axis=1, kind="stable")[:, :goes], False, 1)
    return mask.reshape(n, k)
