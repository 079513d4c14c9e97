"""The definition of the sparse projection, in NumPy, one obvious step at a time.

Parameter j has, in each slot t < nonzeros, one entry: word t % 4 of
Philox(counter = (j low, j high, checkpoint, 7 * 2**16 + t // 4), key = (seed low, seed high)).
Its lowest bit is the sign (1 is minus); its upper 31 bits u choose a column of the slot's own
stratum [t*k//s, (t+1)*k//s): first column + (u * width >> 31). Strata keep the entries of a row
apart, so that each row of P has norm 1 exactly (Kane and Nelson 2014; Cohen 2016).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.streams import PURPOSE_CODES, Purpose, philox4x32

SLOT_BASE = PURPOSE_CODES[Purpose.PROJECTION] << 16


def entries(
    start: int, stop: int, *, dim: int, nonzeros: int, seed: int, checkpoint: int
) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """Columns and signs of parameters start..stop.

    Returns:
        int32 columns and int8 signs (+1, -1), both [stop - start, nonzeros].
    """
    index = np.arange(start, stop, dtype=np.uint64)
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32)
    columns = np.empty((stop - start, nonzeros), dtype=np.int32)
    signs = np.empty((stop - start, nonzeros), dtype=np.int8)
    for slot in range(nonzeros):
        counter = np.empty((stop - start, 4), dtype=np.uint32)
        counter[:, 0] = index & np.uint64(0xFFFFFFFF)
        counter[:, 1] = index >> np.uint64(32)
        counter[:, 2] = checkpoint
        counter[:, 3] = SLOT_BASE + slot // 4
        word = philox4x32(counter, key)[:, slot % 4].astype(np.uint64)
        first = slot * dim // nonzeros
        width = np.uint64((slot + 1) * dim // nonzeros - first)
        # A column's probability is off by at most width / 2**31.
        columns[:, slot] = first + ((word >> np.uint64(1)) * width >> np.uint64(31))
        signs[:, slot] = 1 - 2 * (word & np.uint64(1)).astype(np.int8)
    return columns, signs


def sketch_reference(
    gradients: NDArray[Any], *, dim: int, nonzeros: int, seed: int, checkpoint: int, offset: int = 0
) -> NDArray[np.float64]:
    """The sketch [B, dim] of gradients [B, p] whose first column is parameter `offset`."""
    n_parameters = gradients.shape[1]
    columns, signs = entries(
        offset,
        offset + n_parameters,
        dim=dim,
        nonzeros=nonzeros,
        seed=seed,
        checkpoint=checkpoint,
    )
    matrix = np.zeros((n_parameters, dim))
    np.put_along_axis(matrix, columns, signs / np.sqrt(nonzeros), axis=1)
    return gradients.astype(np.float64) @ matrix
