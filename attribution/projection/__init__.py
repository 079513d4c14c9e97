"""Random sketches of gradients: S = G P for a matrix P [p, k] that is never stored.

Each entry of P is a pure function of (seed, checkpoint, parameter index, column), by a
counter-based generator, with E[P P^T] = I: the matrix is the same bits on every device and for
every way of cutting the work. The NumPy reference defines the bits; Numba, Torch and CUDA kernels
follow it.
"""

from attribution.projection.choice import fingerprint_of, settled
from attribution.projection.implementation import sketch_implementation
from attribution.projection.kinds import Projection, ProjectionKind, fingerprint
from attribution.projection.sketch import sketch
from attribution.projection.transpose import backproject

__all__ = [
    "Projection",
    "ProjectionKind",
    "backproject",
    "fingerprint",
    "fingerprint_of",
    "settled",
    "sketch",
    "sketch_implementation",
]
