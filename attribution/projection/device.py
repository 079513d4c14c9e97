"""The random projections in plain Torch operations, for tensors that live on a GPU without CuPy.

The bits are those of the reference; the float sums of the sparse projection are in no fixed order
(atomics), so that its sketches of two runs agree to rounding only.
"""

from collections.abc import Callable

import torch
from torch import Tensor

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

# Parameters whose words are drawn at a time.
CHUNK = 1 << 20
# Numbers of a dense matrix, or of transformed gradients, that exist at a time.
DENSE_CHUNK = 1 << 25
_MASK = 0xFFFFFFFF


def add_sketch(
    gradients: Tensor,
    out: Tensor,
    *,
    kind: str,
    nonzeros: int,
    offset: int,
    seed: int,
    checkpoint: int,
) -> None:
    """Add the sketch of a block [B, entries] to out [B, dim], without the projection's scale."""
    if kind == "sparse":
        _sparse(gradients, out, nonzeros, offset, seed, checkpoint)
    elif kind == "hadamard":
        _hadamard(gradients, out, offset, seed, checkpoint)
    else:
        draw = rademacher_rows if kind == "rademacher" else gaussian_rows
        _dense(draw, gradients, out, offset, seed, checkpoint)


def rademacher_rows(index: Tensor, dim: int, seed: int, checkpoint: int) -> Tensor:
    """Rows of the rademacher matrix before the factor: float32 [..., dim] of +1 and -1."""
    return _signs(index, range(-(-dim // 128)), RADEMACHER, seed, checkpoint)[..., :dim]


def gaussian_rows(index: Tensor, dim: int, seed: int, checkpoint: int) -> Tensor:
    """Rows of the gaussian matrix before the factor: float32 [..., dim].

    Operations and their order are those of `reference.normals`; each is a kernel of its own, so
    that none is fused with another.
    """
    parts = torch.arange(-(-dim // 4), device=index.device)
    x0, x1, x2, x3 = _words(index[..., None], parts, GAUSSIAN, seed, checkpoint)
    a, b = torch.stack((x0, x2), dim=-1), torch.stack((x1, x3), dim=-1)
    bits = (2 * (a >> 9) + 1).to(torch.float32).view(torch.int32) + (0x3F800000 - MANTISSA_BASE)
    exponent = ((bits >> 23) - (127 + 24)).to(torch.float32)
    m = ((bits & 0x7FFFFF) + MANTISSA_BASE).view(torch.float32)
    s = (m - 1) / (m + 1)
    z = s * s
    log_m = s * (z * _horner(LOG_TERMS, z)) + 2 * s
    # Torch's float32 square root on a CPU is not rounded to nearest (torch 2.13); float64 is wide
    # enough that rounding twice gives the nearest float32.
    radius = (-2 * (exponent * float(LN2) + log_m)).double().sqrt().float()
    step = 2 * ((b & 0x3FFFFFFF) >> 7) + 1 - 2**23
    x = step.to(torch.float32) * float(ANGLE)
    z = x * x
    sine = x * (z * _horner(SIN_TERMS, z)) + x
    cosine = z * _horner(COS_TERMS, z) + 1
    quarter = b >> 30
    odd, radius = (quarter & 1) == 1, torch.where(quarter >= 2, -radius, radius)
    first, second = torch.where(odd, -sine, cosine), torch.where(odd, cosine, sine)
    return torch.stack((radius * first, radius * second), dim=-1).flatten(-3)[..., :dim]


def _horner(terms: tuple[object, ...], z: Tensor) -> Tensor:
    value = torch.full_like(z, float(terms[-1]))  # type: ignore[arg-type]
    for term in terms[-2::-1]:
        value = value * z + float(term)  # type: ignore[arg-type]
    return value


def _sparse(
    gradients: Tensor, out: Tensor, nonzeros: int, offset: int, seed: int, checkpoint: int
) -> None:
    dim, n_parameters = out.shape[1], gradients.shape[1]
    for start in range(0, n_parameters, CHUNK):
        stop = min(start + CHUNK, n_parameters)
        index = torch.arange(offset + start, offset + stop, device=out.device)
        for group in range(0, nonzeros, 4):
            words = _words(index, group // 4, SPARSE, seed, checkpoint)
            for slot in range(group, min(group + 4, nonzeros)):
                word = words[slot - group]
                first = slot * dim // nonzeros
                width = (slot + 1) * dim // nonzeros - first
                columns = first + ((word >> 1) * width >> 31)
                signs = (1 - 2 * (word & 1)).to(out.dtype)
                out.index_add_(1, columns, gradients[:, start:stop] * signs)


def _dense(
    draw: Callable[[Tensor, int, int, int], Tensor],
    gradients: Tensor,
    out: Tensor,
    offset: int,
    seed: int,
    checkpoint: int,
) -> None:
    n_parameters, dim = gradients.shape[1], out.shape[1]
    step = max(1, DENSE_CHUNK // dim)
    for start in range(0, n_parameters, step):
        stop = min(start + step, n_parameters)
        index = torch.arange(offset + start, offset + stop, device=out.device)
        matrix = draw(index, dim, seed, checkpoint).to(out.dtype)
        _add_product(gradients[:, start:stop], matrix, out)


def _add_product(gradients: Tensor, matrix: Tensor, out: Tensor) -> None:
    if out.dtype == torch.float32 and out.device.type == "cuda" and _tf32_is_on():
        # TF32 keeps ten bits of a gradient. Cut into three parts of at most eight bits each the
        # product is exact to float32 again; the gaussian matrix is cut alike.
        for left in _eight_bit_parts(gradients):
            for right in _eight_bit_parts(matrix):
                out.addmm_(left, right)
        return
    out.addmm_(gradients, matrix)


def _tf32_is_on() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _eight_bit_parts(values: Tensor) -> list[Tensor]:
    """Three float32 tensors that bfloat16 holds exactly, and whose sum is values."""
    parts = []
    for _ in range(3):
        part = values.to(torch.bfloat16).to(torch.float32)
        parts.append(part)
        values = values - part
    return parts


def _hadamard(gradients: Tensor, out: Tensor, offset: int, seed: int, checkpoint: int) -> None:
    (n_rows, n_parameters), dim = gradients.shape, out.shape[1]
    first, last = offset // BLOCK, (offset + n_parameters - 1) // BLOCK + 1
    at_once = max(1, DENSE_CHUNK // (n_rows * max(BLOCK, dim)))
    for block in range(first, last, at_once):
        stop = min(block + at_once, last)
        low, high = max(offset, block * BLOCK), min(offset + n_parameters, stop * BLOCK)
        values = gradients.new_zeros(n_rows, (stop - block) * BLOCK)
        values[:, low - block * BLOCK : high - block * BLOCK] = gradients[
            :, low - offset : high - offset
        ]
        blocks = torch.arange(block, stop, device=out.device)
        sets = torch.arange(block * (BLOCK // 128), stop * (BLOCK // 128), device=out.device)
        values *= _signs(sets, range(1), HADAMARD, seed, checkpoint).flatten().to(out.dtype)
        values = _walsh_hadamard(values.view(n_rows, stop - block, BLOCK))
        groups = range(COLUMN_SIGN_PART, COLUMN_SIGN_PART - (-dim // 128))
        signs = _signs(blocks, groups, HADAMARD, seed, checkpoint)[:, :dim].to(out.dtype)
        rows = _walsh_rows(blocks, dim, seed, checkpoint)
        sampled = values.gather(2, rows.expand(n_rows, -1, -1))
        out += torch.einsum("rbc,bc->rc", sampled, signs)


def _walsh_hadamard(values: Tensor) -> Tensor:
    """Along the last axis, of a power of two; in natural (Sylvester) order."""
    shape, step = values.shape, 1
    while step < shape[-1]:
        a, b = values.view(*shape[:-1], -1, 2, step).unbind(-2)
        values = torch.stack((a + b, a - b), dim=-2).view(shape)
        step *= 2
    return values


def _walsh_rows(blocks: Tensor, dim: int, seed: int, checkpoint: int) -> Tensor:
    """The sampled rows of `reference.walsh_rows`: int64 [blocks, dim]."""
    folds = torch.arange(-(-dim // BLOCK), device=blocks.device)
    x = torch.arange(BLOCK, device=blocks.device)
    for word in _words(blocks[:, None], PERMUTATION_PART + folds, HADAMARD, seed, checkpoint):
        word = word[..., None]
        x = (x * (2 * (word & 0x7FF) + 1) + (word >> 11)) & 0xFFF
        x = x ^ (x >> 6)
    return x.flatten(1)[:, :dim]


def _signs(index: Tensor, parts: range, kind: int, seed: int, checkpoint: int) -> Tensor:
    """float32 [..., 128 * parts] of +1 and -1 for each index."""
    part = torch.arange(parts.start, parts.stop, device=index.device)
    words = torch.stack(_words(index[..., None], part, kind, seed, checkpoint), dim=-1)
    bits = (words[..., None].to(torch.int32) >> torch.arange(32, device=index.device).int()) & 1
    return (1 - 2 * bits).to(torch.float32).flatten(-3)


def _words(
    index: Tensor, part: Tensor | int, kind: int, seed: int, checkpoint: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Signed 64-bit products wrap to the same bits as unsigned ones; the mask after each shift
    # drops the copies of the sign.
    index, parts = torch.broadcast_tensors(index, torch.as_tensor(part, device=index.device))
    x0, x1 = index & _MASK, (index >> 32) | (kind << 24)
    x2, x3 = torch.full_like(index, checkpoint), SLOT_BASE + parts
    k0, k1 = seed & _MASK, seed >> 32
    for _ in range(10):
        product0, product1 = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        x0, x1, x2, x3 = (
            ((product1 >> 32) & _MASK) ^ x1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ x3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return x0, x1, x2, x3
