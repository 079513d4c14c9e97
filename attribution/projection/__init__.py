"""Random sketches of gradients: S = G P for a matrix P [p, k] that is never stored.

Each row of P (one for each parameter) has a few entries of +-1/sqrt(nonzeros), chosen by a
counter-based generator from (seed, checkpoint, parameter index, slot) alone, so that E[P P^T] = I
and the matrix is the same bits on every device and for every way of cutting the work. The NumPy
reference defines the bits.
"""

from attribution.projection.choice import fingerprint_of
from attribution.projection.kinds import Projection, ProjectionKind, fingerprint
from attribution.projection.sketch import sketch

__all__ = ["Projection", "ProjectionKind", "fingerprint", "fingerprint_of", "sketch"]
