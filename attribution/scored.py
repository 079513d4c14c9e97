"""What whoever judges scores asks of them first: that they are numbers, and of which output."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from schemas.errors import ShapeError


def check_finite(tau: npt.NDArray[np.floating]) -> None:
    """Refuse scores [n_query, n_train] that are not finite.

    Raises:
        ShapeError: One is NaN or infinite; the first is named.
    """
    if not np.isfinite(tau).all():
        query, row = np.argwhere(~np.isfinite(tau))[0]
        raise ShapeError(
            f"the score of query {query} and training row {row} is {tau[query, row]}; "
            "scores must be finite"
        )


def recorded_output(scores: object) -> str | None:
    """The output that scores with a record are of; None of a plain array."""
    record = getattr(scores, "record", None)
    output = record.get("output") if isinstance(record, Mapping) else None
    return None if output is None else str(output)
