"""The definition of every random projection, in NumPy, one obvious step at a time.

A projection is a matrix P [p, k] with E[P P^T] = I. Parameter j owns row j. All bits come from
Philox4x32-10 with key (seed low, seed high) and a counter of four words

    (index low, index high | kind << 24, checkpoint, 7 * 2**16 + part)

where index is j unless said otherwise, and kind is 0 sparse, 1 rademacher, 2 gaussian, 3 hadamard:
no two kinds, parameters, checkpoints or parts share a counter. "Bit c of the words" is bit c % 32
of word (c % 128) // 32; a set bit means minus.

- sparse (Kane and Nelson 2014; Cohen 2016): slot t < nonzeros has word t % 4 of part t // 4. Its
  lowest bit is the sign, its upper 31 bits u choose a column of the slot's own stratum
  [t*k//s, (t+1)*k//s): first column + (u * width >> 31). Entries +-1/sqrt(nonzeros). Strata keep
  the entries of a row apart, so that each row of P has norm 1 exactly.
- rademacher (Achlioptas 2003): entry (j, c) is +-1/sqrt(k), bit c of the words of part c // 128.
- gaussian: entry (j, c) is number c % 4 of `normals` of the words of part c // 4, over sqrt(k).
- hadamard (Ailon and Chazelle 2009; Tropp 2011), in blocks: parameter j is place i = j % 4096 of
  block n = j // 4096, and P[j, c] = d_j e_nc (-1)**popcount(i & r_nc) / sqrt(k). The sign d_j is
  bit j % 128 of index j // 128, part 0. The sign e_nc is bit c of index n, part 2**15 + c // 128.
  The sampled row r_nc is `permuted(c % 4096)` under the words of index n, part 2**14 + c // 4096:
  within 4096 columns no row is drawn twice, so that with k = 4096 a single block is kept exactly.
  The d make P P^T unbiased; the e bring the error between blocks down to 1/sqrt(k), also for
  place 0, where every Walsh function is 1.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.streams import PURPOSE_CODES, Purpose, philox4x32

SLOT_BASE = PURPOSE_CODES[Purpose.PROJECTION] << 16
SPARSE, RADEMACHER, GAUSSIAN, HADAMARD = range(4)
KIND_CODES = {
    "sparse": SPARSE,
    "rademacher": RADEMACHER,
    "gaussian": GAUSSIAN,
    "hadamard": HADAMARD,
}
# Walsh functions in a block. Larger blocks gain little (the error between blocks is 1/sqrt(k)
# anyway), and 4096 numbers of a row stay in a first-level cache and in a GPU's shared memory.
BLOCK = 4096
PERMUTATION_PART, COLUMN_SIGN_PART = 1 << 14, 1 << 15
# The widest sketch whose parts fit 16 bits.
WIDEST = {"sparse": 2**31 - 1, "rademacher": 2**23, "gaussian": 2**18, "hadamard": 2**22}

F32 = np.float32
LN2 = F32(math.log(2))
# log(m) = 2s + s z (2/3 + z (2/5 + ...)), z = s^2, s = (m - 1) / (m + 1), |s| < 0.172.
LOG_TERMS = tuple(F32(2 / n) for n in (3, 5, 7, 9))
# A step of the angle; sine and cosine by Taylor on |x| < pi/4: the next term is below 3e-9.
ANGLE = F32(math.pi / 2 / 2**24)
SIN_TERMS = tuple(F32(sign / math.factorial(n)) for n, sign in ((3, -1), (5, 1), (7, -1), (9, 1)))
COS_TERMS = tuple(
    F32(sign / math.factorial(n)) for n, sign in ((2, -1), (4, 1), (6, -1), (8, 1), (10, -1))
)
# Exponent and mantissa are cut so that m is in [sqrt(1/2), sqrt(2)).
MANTISSA_BASE = 0x3F3504F3


def words(
    index: NDArray[np.uint64], part: int | NDArray[Any], *, kind: int, seed: int, checkpoint: int
) -> NDArray[np.uint32]:
    """Four random words for each index and part (broadcast): uint32 [..., 4]."""
    counter = np.empty((*np.broadcast_shapes(index.shape, np.shape(part)), 4), dtype=np.uint32)
    counter[..., 0] = index & np.uint64(0xFFFFFFFF)
    counter[..., 1] = (index >> np.uint64(32)) | np.uint64(kind << 24)
    counter[..., 2] = checkpoint
    counter[..., 3] = SLOT_BASE + part
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32)
    return philox4x32(counter, key)


def entries(
    start: int, stop: int, *, dim: int, nonzeros: int, seed: int, checkpoint: int
) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """Columns and signs of parameters start..stop in the sparse projection.

    Returns:
        int32 columns and int8 signs (+1, -1), both [stop - start, nonzeros].
    """
    index = np.arange(start, stop, dtype=np.uint64)
    columns = np.empty((stop - start, nonzeros), dtype=np.int32)
    signs = np.empty((stop - start, nonzeros), dtype=np.int8)
    for slot in range(nonzeros):
        drawn = words(index, slot // 4, kind=SPARSE, seed=seed, checkpoint=checkpoint)
        word = drawn[:, slot % 4].astype(np.uint64)
        first = slot * dim // nonzeros
        width = np.uint64((slot + 1) * dim // nonzeros - first)
        # A column's probability is off by at most width / 2**31.
        columns[:, slot] = first + ((word >> np.uint64(1)) * width >> np.uint64(31))
        signs[:, slot] = 1 - 2 * (word & np.uint64(1)).astype(np.int8)
    return columns, signs


def bit_signs(drawn: NDArray[np.uint32]) -> NDArray[np.int8]:
    """+1 and -1 of the 128 bits of each four words: int8 [..., 128]."""
    bits = (drawn[..., :, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    return (1 - 2 * bits.astype(np.int8)).reshape(*drawn.shape[:-1], 128)


def normals(drawn: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Standard normal numbers of words: float32 [..., 4] of uint32 [..., 4].

    Box and Muller (1958). Words (a, b) give r cos and r sin, with r = sqrt(-2 log u),
    u = (2 (a >> 9) + 1) / 2**24; the upper two bits of b are the quarter of the circle, the next
    23 the angle within it, from -pi/4 to pi/4. Only float32 sums, products, quotients and square
    roots are used, each rounded to nearest and none fused: IEEE 754 fixes every bit of the result,
    so that it is the same on every device. |value| < 5.8.
    """
    a, b = drawn[..., 0::2], drawn[..., 1::2]
    bits = (2 * (a >> np.uint32(9)) + np.uint32(1)).astype(np.float32).view(np.int32)
    bits = bits + np.int32(0x3F800000 - MANTISSA_BASE)
    exponent = ((bits >> np.int32(23)) - np.int32(127 + 24)).astype(np.float32)
    m = ((bits & np.int32(0x7FFFFF)) + np.int32(MANTISSA_BASE)).view(np.float32)
    s = (m - F32(1)) / (m + F32(1))
    z = s * s
    log_m = s * (z * _horner(LOG_TERMS, z)) + F32(2) * s
    radius = np.sqrt(F32(-2) * (exponent * LN2 + log_m))

    step = 2 * ((b & np.uint32(0x3FFFFFFF)) >> np.uint32(7)).astype(np.int32) + 1 - 2**23
    x = step.astype(np.float32) * ANGLE
    z = x * x
    sine = x * (z * _horner(SIN_TERMS, z)) + x
    cosine = z * _horner(COS_TERMS, z) + F32(1)
    quarter = b >> np.uint32(30)
    odd = (quarter & np.uint32(1)) == 1
    turn = np.where(quarter >= 2, F32(-1), F32(1))
    first = np.where(odd, -sine, cosine) * turn
    second = np.where(odd, cosine, sine) * turn
    return np.stack([radius * first, radius * second], axis=-1).reshape(drawn.shape)


def _horner(terms: tuple[np.float32, ...], z: NDArray[np.float32]) -> NDArray[np.float32]:
    value = np.full_like(z, terms[-1])
    for term in terms[-2::-1]:
        value = value * z + term
    return value


def permuted(place: NDArray[np.int64], drawn: NDArray[np.uint32]) -> NDArray[np.int64]:
    """A bijection of [0, 4096), chosen by four words [..., 4] (broadcast against the places)."""
    x = place
    for number in range(4):
        word = drawn[..., number].astype(np.int64)
        x = (x * (2 * (word & 0x7FF) + 1) + ((word >> 11) & 0xFFF)) & 0xFFF
        x = x ^ (x >> 6)
    return x


def walsh_rows(
    block: int, *, dim: int, seed: int, checkpoint: int
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Rows of the Walsh-Hadamard transform that a block gives to the columns, and their signs."""
    index = np.array(block, dtype=np.uint64)
    key = {"kind": HADAMARD, "seed": seed, "checkpoint": checkpoint}
    columns = np.arange(dim, dtype=np.int64)
    rows = np.concatenate(
        [
            permuted(
                columns[first : first + BLOCK] % BLOCK,
                words(index, PERMUTATION_PART + first // BLOCK, **key),
            )
            for first in range(0, dim, BLOCK)
        ]
    )
    drawn = words(index, COLUMN_SIGN_PART + np.arange(-(-dim // 128)), **key)
    return rows, bit_signs(drawn).ravel()[:dim]


def matrix(
    start: int,
    stop: int,
    *,
    kind: str = "sparse",
    dim: int,
    nonzeros: int = 1,
    seed: int,
    checkpoint: int,
) -> NDArray[np.float64]:
    """Rows start..stop of P, [stop - start, dim]."""
    key = {"seed": seed, "checkpoint": checkpoint}
    index = np.arange(start, stop, dtype=np.uint64)
    if kind == "sparse":
        result = np.zeros((stop - start, dim))
        columns, signs = entries(start, stop, dim=dim, nonzeros=nonzeros, **key)
        np.put_along_axis(result, columns, signs / np.sqrt(nonzeros), axis=1)
        return result
    if kind == "hadamard":
        signs = bit_signs(words(index // np.uint64(128), 0, kind=HADAMARD, **key))
        result = np.empty((stop - start, dim))
        own = signs[np.arange(stop - start), (index % np.uint64(128)).astype(np.int64)]
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            low, high = max(start, block * BLOCK), min(stop, (block + 1) * BLOCK)
            rows, column_signs = walsh_rows(block, dim=dim, **key)
            place = np.arange(low, high) - block * BLOCK
            walsh = 1 - 2 * (np.bitwise_count(place[:, None] & rows) & 1).astype(np.int8)
            result[low - start : high - start] = walsh * column_signs
        return result * own[:, None] / np.sqrt(dim)
    width = 128 if kind == "rademacher" else 4
    drawn = words(index[:, None], np.arange(-(-dim // width)), kind=KIND_CODES[kind], **key)
    numbers = bit_signs(drawn) if kind == "rademacher" else normals(drawn)
    return numbers.reshape(len(index), -1)[:, :dim] / np.sqrt(dim)


def sketch_reference(
    gradients: NDArray[Any],
    *,
    kind: str = "sparse",
    dim: int,
    nonzeros: int = 1,
    seed: int,
    checkpoint: int,
    offset: int = 0,
) -> NDArray[np.float64]:
    """The sketch [B, dim] of gradients [B, p] whose first column is parameter `offset`."""
    stop = offset + gradients.shape[1]
    options = {"dim": dim, "nonzeros": nonzeros, "seed": seed, "checkpoint": checkpoint}
    return gradients.astype(np.float64) @ matrix(offset, stop, kind=kind, **options)
