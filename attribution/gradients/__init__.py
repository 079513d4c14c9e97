"""Exact per-example gradients of a model's output, as blocks of the flat gradient.

G[i] is the gradient of f(z_i; theta) with respect to all parameters that require one, flattened
and joined in the order of ``named_parameters``; it is handed out in blocks [B, entries] so that
[n, p] never exists. f is summed over the batch, never averaged. The model is in eval mode, and it
is a private copy: the caller's mode, weights and hooks are never touched.
"""

from attribution.gradients.blocks import GradientBlocks, OuterLayer
from attribution.gradients.perexample import (
    BLOCK_ENTRIES,
    GradientPass,
    PerExampleGradients,
    gradient_blocks,
)
from attribution.gradients.plan import Layout, layout_of

__all__ = [
    "BLOCK_ENTRIES",
    "GradientBlocks",
    "GradientPass",
    "Layout",
    "OuterLayer",
    "PerExampleGradients",
    "gradient_blocks",
    "layout_of",
]
