"""Compiled CPU code (Numba) that sketches outer products without writing them down."""

import numba
import numpy as np

LANES = 8  # rows that share one reading of columns and signs: a vector register of float32


@numba.njit(cache=True, nogil=True, error_model="numpy")
def add_outer(  # type: ignore[no-untyped-def]
    first, last, left, right, columns, signs, out
):
    """out[b, columns[j]] += signs[j] * (left[b] x right[b])[j] for rows b in first..last.

    The eight lanes are spelled out so that all of a step's loads come before its stores: only
    then does the compiler make vectors of them (0.48 -> 0.31 ns an entry).

    Args:
        first: First row.
        last: One past the last row.
        left: [B, o].
        right: [B, i].
        columns: uint32 [o * i].
        signs: [o * i] of +1 and -1, of out's type.
        out: [B, dim].
    """
    n_out, n_in, dim = left.shape[1], right.shape[1], out.shape[1]
    a = np.zeros(n_in * LANES, dtype=out.dtype)
    d = np.zeros(LANES, dtype=out.dtype)
    total = np.zeros(dim * LANES, dtype=out.dtype)
    for low in range(first, last, LANES):
        lanes = min(LANES, last - low)
        a[:] = 0
        for j in range(n_in):
            for lane in range(lanes):
                a[j * LANES + lane] = right[low + lane, j]
        total[:] = 0
        for o in range(n_out):
            d[:] = 0
            for lane in range(lanes):
                d[lane] = left[low + lane, o]
            d0, d1, d2, d3, d4, d5, d6, d7 = d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]
            for j in range(n_in):
                c, k = LANES * np.int64(columns[o * n_in + j]), LANES * j
                s = signs[o * n_in + j]
                t0, t1 = total[c] + s * d0 * a[k], total[c + 1] + s * d1 * a[k + 1]
                t2, t3 = total[c + 2] + s * d2 * a[k + 2], total[c + 3] + s * d3 * a[k + 3]
                t4, t5 = total[c + 4] + s * d4 * a[k + 4], total[c + 5] + s * d5 * a[k + 5]
                t6, t7 = total[c + 6] + s * d6 * a[k + 6], total[c + 7] + s * d7 * a[k + 7]
                total[c], total[c + 1], total[c + 2], total[c + 3] = t0, t1, t2, t3
                total[c + 4], total[c + 5], total[c + 6], total[c + 7] = t4, t5, t6, t7
        for lane in range(lanes):
            for column in range(dim):
                out[low + lane, column] += total[column * LANES + lane]
