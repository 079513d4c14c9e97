"""Which rows are to be forgotten, checked; what unlearning costs, counted in examples."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from schemas.errors import ShapeError

Arrays = tuple[Tensor | npt.NDArray[Any], Tensor | npt.NDArray[Any]]
IndexArray = npt.NDArray[np.intp]

# Of a forward and backward pass of one example, which counts 1.
FORWARD = 1 / 3
# A forward pass, a backward pass that is differentiated, and its own backward pass.
JVP = 5 / 3
# A product with the curvature of one example: a forward pass, a tangent and a pull-back.
PRODUCT = 2.0


def forget_rows(forget: npt.ArrayLike, n_train: int) -> IndexArray:
    """Row numbers of a forget set, ascending.

    Args:
        forget: Row numbers, or bool [n_train].
        n_train: Training rows.

    Raises:
        ShapeError: The set is empty or everything, or names a row twice or one that is not there.
    """
    rows: npt.NDArray[Any] = np.asarray(forget)
    if rows.dtype == np.bool_ and rows.shape == (n_train,):
        rows = np.flatnonzero(rows)
    if rows.size == 0:
        raise ShapeError("the forget set is empty; there is nothing to unlearn")
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ShapeError(
            f"the forget set is {rows.dtype} of shape {rows.shape}; give row numbers, or bool "
            f"[{n_train}]"
        )
    outside = rows[(rows < 0) | (rows >= n_train)]
    if len(outside):
        raise ShapeError(
            f"row {outside[0]} is to be forgotten and is not in the training set of {n_train} "
            "rows; only what was trained on can be unlearned"
        )
    unique = np.unique(rows)
    if len(unique) != len(rows):
        raise ShapeError(
            f"the forget set names {len(rows) - len(unique)} rows twice; name each once"
        )
    if len(unique) == n_train:
        raise ShapeError(
            "the forget set is the whole training set; train on something else instead"
        )
    return unique.astype(np.intp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Examples processed to unlearn one model; a forward and backward pass of one example is 1.

    A forward pass alone counts 1/3, a Jacobian-vector product 5/3, a product with the curvature 2.

    Attributes:
        scoring: Features or gradients, and products with the curvature.
        teacher: Passes that make the targets of fine-tuning.
        tuning: Fine-tuning.
    """

    scoring: float = 0.0
    teacher: float = 0.0
    tuning: float = 0.0

    @property
    def examples(self) -> float:
        """All together."""
        return self.scoring + self.teacher + self.tuning

    def share(self, n_retain: int, epochs: int) -> float:
        """Relative to retraining on the rows that stay."""
        return self.examples / (n_retain * epochs)
