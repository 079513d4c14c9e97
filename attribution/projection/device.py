"""The sparse projection in plain Torch operations, for tensors that live on a GPU.

The bits are those of the reference; the float sums are in no fixed order (atomics), so sketches
of two runs agree to rounding only.
"""

import torch
from torch import Tensor

from attribution.projection.reference import SLOT_BASE

CHUNK = 1 << 20
_MASK = 0xFFFFFFFF


def add_sketch(
    gradients: Tensor, out: Tensor, *, offset: int, nonzeros: int, seed: int, checkpoint: int
) -> None:
    """Add the sketch of a block [B, entries] to out [B, dim], without 1/sqrt(nonzeros)."""
    dim, n_parameters = out.shape[1], gradients.shape[1]
    for start in range(0, n_parameters, CHUNK):
        stop = min(start + CHUNK, n_parameters)
        index = torch.arange(offset + start, offset + stop, device=out.device)
        for group in range(0, nonzeros, 4):
            words = _philox(index, checkpoint, SLOT_BASE + group // 4, seed)
            for slot in range(group, min(group + 4, nonzeros)):
                word = words[slot - group]
                first = slot * dim // nonzeros
                width = (slot + 1) * dim // nonzeros - first
                columns = first + ((word >> 1) * width >> 31)
                signs = (1 - 2 * (word & 1)).to(out.dtype)
                out.index_add_(1, columns, gradients[:, start:stop] * signs)


def _philox(index: Tensor, checkpoint: int, slot_word: int, seed: int) -> tuple[Tensor, ...]:
    # Signed 64-bit products wrap to the same bits as unsigned ones; the mask after each shift
    # drops the copies of the sign.
    x0, x1 = index & _MASK, index >> 32
    x2, x3 = torch.full_like(index, checkpoint), torch.full_like(index, slot_word)
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
