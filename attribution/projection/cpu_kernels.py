"""Compiled CPU code (Numba) of the random projections: the draws of `reference`, and the sums.

All of it is one module, for Numba's cache on disk does not notice a change in another file.
The functions release the interpreter lock and start no threads.
"""

import numba
import numpy as np

from attribution.projection.reference import (
    ANGLE,
    BLOCK,
    COLUMN_SIGN_PART,
    COS_TERMS,
    GAUSSIAN,
    HADAMARD,
    LN2,
    LOG_TERMS,
    MANTISSA_BASE,
    PERMUTATION_PART,
    RADEMACHER,
    SIN_TERMS,
    SLOT_BASE,
    SPARSE,
)

# Rows that go through one Walsh-Hadamard transform together: a vector register of float32.
LANES = 8
ONE, TWO, MINUS_TWO = np.float32(1), np.float32(2), np.float32(-2)
LOG3, LOG5, LOG7, LOG9 = LOG_TERMS
SIN3, SIN5, SIN7, SIN9 = SIN_TERMS
COS2, COS4, COS6, COS8, COS10 = COS_TERMS
EXPONENT_SHIFT = 0x3F800000 - MANTISSA_BASE


@numba.njit(nogil=True)
def _words(index, part, kind, seed, checkpoint):  # type: ignore[no-untyped-def]
    """`reference.words` of one index."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1 = np.uint64(index) & mask, (np.uint64(index) >> half) | np.uint64(kind << 24)
    x2, x3 = np.uint64(checkpoint), np.uint64(SLOT_BASE + part)
    k0, k1 = np.uint64(seed) & mask, np.uint64(seed) >> half
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * x0
        product1 = np.uint64(0xCD9E8D57) * x2
        x0 = (product1 >> half) ^ x1 ^ k0
        x1 = product1 & mask
        x2 = (product0 >> half) ^ x3 ^ k1
        x3 = product0 & mask
        k0 = (k0 + np.uint64(0x9E3779B9)) & mask
        k1 = (k1 + np.uint64(0xBB67AE85)) & mask
    return x0, x1, x2, x3


@numba.njit(nogil=True)
def _words_of_parts(index, kind, seed, checkpoint, x):  # type: ignore[no-untyped-def]
    """`reference.words` of one index and parts 0, 1, ...: fills uint64 [4, parts].

    Round by round over all parts, so that the compiler takes several parts at a time.
    """
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    for part in range(x.shape[1]):
        x0[part] = np.uint64(index) & mask
        x1[part] = (np.uint64(index) >> half) | np.uint64(kind << 24)
        x2[part] = np.uint64(checkpoint)
        x3[part] = np.uint64(SLOT_BASE + part)
    k0, k1 = np.uint64(seed) & mask, np.uint64(seed) >> half
    for _ in range(10):
        for part in range(x.shape[1]):
            # The mask says that both factors have 32 bits: a product that vectors can do.
            product0 = np.uint64(0xD2511F53) * (x0[part] & mask)
            product1 = np.uint64(0xCD9E8D57) * (x2[part] & mask)
            x0[part] = (product1 >> half) ^ x1[part] ^ k0
            x1[part] = product1 & mask
            x2[part] = (product0 >> half) ^ x3[part] ^ k1
            x3[part] = product0 & mask
        k0 = (k0 + np.uint64(0x9E3779B9)) & mask
        k1 = (k1 + np.uint64(0xBB67AE85)) & mask


# --- sparse ---------------------------------------------------------------------------------------


@numba.njit(cache=True, nogil=True)
def draw_sparse(start, seed, checkpoint, dim, columns, signs):  # type: ignore[no-untyped-def]
    """`reference.entries`: fills columns and signs [count, nonzeros]."""
    count, nonzeros = columns.shape
    for row in range(count):
        for slot in range(nonzeros):
            if slot % 4 == 0:
                x0, x1, x2, x3 = _words(start + row, slot // 4, SPARSE, seed, checkpoint)
            choice = slot % 4
            word = x0 if choice == 0 else x1 if choice == 1 else x2 if choice == 2 else x3
            first = slot * dim // nonzeros
            width = np.uint64((slot + 1) * dim // nonzeros - first)
            columns[row, slot] = first + np.int64(((word >> np.uint64(1)) * width) >> np.uint64(31))
            signs[row, slot] = 1 - 2 * np.int64(word & np.uint64(1))


# Rows that `scatter` sums at once: their four sums of a column are one vector of float32.
TOGETHER = 4


@numba.njit(cache=True, nogil=True)
def scatter(first, last, gradients, start, columns, signs, out):  # type: ignore[no-untyped-def]
    """out[i, columns[j, t]] += signs[j, t] * gradients[i, start + j] for rows first..last.

    Four rows at a time share one reading of columns and signs, and their sums one vector. The sum
    is taken within the chunk first: fewer roundings than one long sum over all parameters.
    """
    count, nonzeros = columns.shape
    dim = out.shape[1]
    total = np.empty((dim, TOGETHER), dtype=out.dtype)
    for row in range(first, last, TOGETHER):
        total[:] = 0
        # Where fewer are left, the last is summed again and added once.
        one, two = gradients[row], gradients[min(row + 1, last - 1)]
        three, four = gradients[min(row + 2, last - 1)], gradients[min(row + 3, last - 1)]
        if nonzeros == 1:  # spelled out: a loop of one costs a quarter of the time
            for j in range(count):
                column, sign = columns[j, 0], signs[j, 0]
                total[column, 0] += sign * one[start + j]
                total[column, 1] += sign * two[start + j]
                total[column, 2] += sign * three[start + j]
                total[column, 3] += sign * four[start + j]
        else:
            for j in range(count):
                a, b, c, d = one[start + j], two[start + j], three[start + j], four[start + j]
                for slot in range(nonzeros):
                    column, sign = columns[j, slot], signs[j, slot]
                    total[column, 0] += sign * a
                    total[column, 1] += sign * b
                    total[column, 2] += sign * c
                    total[column, 3] += sign * d
        for place in range(min(TOGETHER, last - row)):
            for column in range(dim):
                out[row + place, column] += total[column, place]


# --- rademacher and gaussian ----------------------------------------------------------------------


@numba.njit(cache=True, nogil=True)
def fill_signs(first, last, start, seed, checkpoint, out):  # type: ignore[no-untyped-def]
    """Rows first..last of the rademacher matrix of +1 and -1; row 0 is parameter `start`."""
    dim = out.shape[1]
    drawn = np.empty(4, dtype=np.uint32)
    for row in range(first, last):
        for part in range((dim + 127) // 128):
            x0, x1, x2, x3 = _words(start + row, part, RADEMACHER, seed, checkpoint)
            drawn[0], drawn[1], drawn[2], drawn[3] = x0, x1, x2, x3
            for number in range(4):
                low = 128 * part + 32 * number
                word = np.int32(drawn[number])
                if low + 32 <= dim:  # a whole word: the compiler unrolls it into vectors
                    for bit in range(32):
                        out[row, low + bit] = 1 - 2 * ((word >> np.int32(bit)) & np.int32(1))
                else:
                    for bit in range(max(0, dim - low)):
                        out[row, low + bit] = 1 - 2 * ((word >> np.int32(bit)) & np.int32(1))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def fill_normals(first, last, start, seed, checkpoint, out):  # type: ignore[no-untyped-def]
    """Rows first..last of the gaussian matrix, before the factor; row 0 is parameter `start`.

    The order of the operations is that of `reference.normals`: it fixes the bits.
    """
    dim = out.shape[1]
    parts = (dim + 3) // 4
    pairs = 2 * parts
    x = np.empty((4, parts), dtype=np.uint64)
    # First the first pair of every part, then the second of every part.
    a = np.empty(pairs, dtype=np.uint32)
    b = np.empty(pairs, dtype=np.uint32)
    floats = np.empty(pairs, dtype=np.float32)
    ints = floats.view(np.int32)
    exponents = np.empty(pairs, dtype=np.float32)
    cosines = np.empty(pairs, dtype=np.float32)
    sines = np.empty(pairs, dtype=np.float32)
    for row in range(first, last):
        _words_of_parts(start + row, GAUSSIAN, seed, checkpoint, x)
        for part in range(parts):
            a[part], b[part] = x[0, part], x[1, part]
            a[parts + part], b[parts + part] = x[2, part], x[3, part]
        # Loops of their own, for ints is floats: within one loop the compiler would have to wait
        # for each number, and takes one at a time instead of a vector.
        for i in range(pairs):
            floats[i] = np.float32(np.int32(2 * (a[i] >> np.uint32(9)) + 1))
        for i in range(pairs):
            bits = np.int32(ints[i] + np.int32(EXPONENT_SHIFT))
            exponents[i] = np.float32(np.int32((bits >> np.int32(23)) - np.int32(127 + 24)))
            ints[i] = np.int32((bits & np.int32(0x7FFFFF)) + np.int32(MANTISSA_BASE))
        for i in range(pairs):
            m = floats[i]
            s = (m - ONE) / (m + ONE)
            z = s * s
            log_m = s * (z * (((LOG9 * z + LOG7) * z + LOG5) * z + LOG3)) + TWO * s
            radius = np.sqrt(MINUS_TWO * (exponents[i] * LN2 + log_m))

            turned = np.int32(b[i] & np.uint32(0x3FFFFFFF)) >> np.int32(7)
            angle = np.float32(np.int32(2 * turned + 1 - (1 << 23))) * ANGLE
            z = angle * angle
            sine = angle * (z * (((SIN9 * z + SIN7) * z + SIN5) * z + SIN3)) + angle
            cosine = z * ((((COS10 * z + COS8) * z + COS6) * z + COS4) * z + COS2) + ONE
            quarter = b[i] >> np.uint32(30)
            odd = (quarter & np.uint32(1)) != 0
            radius = -radius if quarter >= np.uint32(2) else radius
            cosines[i] = radius * (-sine if odd else cosine)
            sines[i] = radius * (cosine if odd else sine)
        for part in range(dim // 4):
            out[row, 4 * part], out[row, 4 * part + 1] = cosines[part], sines[part]
            out[row, 4 * part + 2] = cosines[parts + part]
            out[row, 4 * part + 3] = sines[parts + part]
        if dim % 4:
            last_part = (cosines[parts - 1], sines[parts - 1], cosines[pairs - 1])
            for column in range(dim - dim % 4, dim):
                out[row, column] = last_part[column % 4]


# --- hadamard -------------------------------------------------------------------------------------


@numba.njit(cache=True, nogil=True)
def draw_hadamard(block, seed, checkpoint, place_signs, rows, column_signs):  # type: ignore[no-untyped-def]
    """Signs of the places, and rows and signs of the columns, of consecutive blocks.

    Args:
        block: Index of the first block.
        seed: Of the projection.
        checkpoint: Its index.
        place_signs: [blocks, 4096], filled with +1 and -1.
        rows: int32 [blocks, dim], filled with rows of the transform.
        column_signs: [blocks, dim], filled with +1 and -1.
    """
    count, dim = rows.shape
    drawn = np.empty(4, dtype=np.uint32)
    for n in range(count):
        for part in range(BLOCK // 128):
            index = (block + n) * (BLOCK // 128) + part
            x0, x1, x2, x3 = _words(index, 0, HADAMARD, seed, checkpoint)
            drawn[0], drawn[1], drawn[2], drawn[3] = x0, x1, x2, x3
            for bit in range(128):
                word = drawn[bit // 32] >> np.uint32(bit % 32)
                place_signs[n, 128 * part + bit] = 1 - 2 * np.int64(word & np.uint32(1))
        for part in range((dim + 127) // 128):
            x0, x1, x2, x3 = _words(block + n, COLUMN_SIGN_PART + part, HADAMARD, seed, checkpoint)
            drawn[0], drawn[1], drawn[2], drawn[3] = x0, x1, x2, x3
            for bit in range(min(128, dim - 128 * part)):
                word = drawn[bit // 32] >> np.uint32(bit % 32)
                column_signs[n, 128 * part + bit] = 1 - 2 * np.int64(word & np.uint32(1))
        for fold in range((dim + BLOCK - 1) // BLOCK):
            x0, x1, x2, x3 = _words(block + n, PERMUTATION_PART + fold, HADAMARD, seed, checkpoint)
            drawn[0], drawn[1], drawn[2], drawn[3] = x0, x1, x2, x3
            for place in range(min(BLOCK, dim - BLOCK * fold)):
                x = np.uint32(place)
                for number in range(4):
                    factor = np.uint32(2) * (drawn[number] & np.uint32(0x7FF)) + np.uint32(1)
                    x = np.uint32(x * factor + (drawn[number] >> np.uint32(11))) & np.uint32(0xFFF)
                    x = x ^ (x >> np.uint32(6))
                rows[n, BLOCK * fold + place] = x


@numba.njit(cache=True, nogil=True)
def transform(  # type: ignore[no-untyped-def]
    first, last, gradients, start, stop, shift, place_signs, rows, column_signs, out
):
    """Add to out the sampled Walsh-Hadamard transforms of columns start..stop of rows first..last.

    Args:
        first: First row.
        last: One past the last row.
        gradients: [B, entries].
        start: First column; it lies in the first block that was drawn.
        stop: One past the last column; it lies in the last block that was drawn.
        shift: Place of column `start` in the first block.
        place_signs: [blocks, 4096] of `draw_hadamard`.
        rows: [blocks, dim] of `draw_hadamard`.
        column_signs: [blocks, dim] of `draw_hadamard`.
        out: [B, dim].
    """
    count, dim = rows.shape
    buffer = np.empty(BLOCK * LANES, dtype=out.dtype)
    total = np.empty((dim, LANES), dtype=out.dtype)
    for low in range(first, last, LANES):
        lanes = min(LANES, last - low)
        total[:] = 0
        for n in range(count):
            begin = shift if n == 0 else 0
            column = start + n * BLOCK - shift  # of place 0
            end = min(BLOCK, stop - column)
            if lanes < LANES or begin > 0 or end < BLOCK:
                buffer[:] = 0
            for lane in range(lanes):
                for i in range(begin, end):
                    value = gradients[low + lane, column + i]
                    buffer[i * LANES + lane] = place_signs[n, i] * value
            _walsh_hadamard(buffer)
            for c in range(dim):
                base = LANES * rows[n, c]
                sign = column_signs[n, c]
                for lane in range(LANES):
                    total[c, lane] += sign * buffer[base + lane]
        for lane in range(lanes):
            for c in range(dim):
                out[low + lane, c] += total[c, lane]


@numba.njit(nogil=True)
def _walsh_hadamard(buffer):  # type: ignore[no-untyped-def]
    """In place, of LANES interleaved rows: two levels in one pass over the memory."""
    step = LANES
    while step < buffer.size:
        for base in range(0, buffer.size, 4 * step):
            # Slices: the compiler then sees that no index is negative, and takes vectors.
            w, x = buffer[base : base + step], buffer[base + step : base + 2 * step]
            y, z = buffer[base + 2 * step : base + 3 * step], buffer[base + 3 * step :][:step]
            for i in range(step):
                a, b, c, d = w[i] + x[i], w[i] - x[i], y[i] + z[i], y[i] - z[i]
                w[i], x[i], y[i], z[i] = a + c, b + d, a - c, b - d
        step *= 4
