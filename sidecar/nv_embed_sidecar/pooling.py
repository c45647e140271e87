"""
From one vector a token to one vector a text, at the width that was asked for.

In:  hidden states of a padded batch      Out: pooled vectors; truncated and normalised ones
"""

from typing import TYPE_CHECKING

import numpy

from nv_embed_sidecar.engines import Vectors

if TYPE_CHECKING:  # the fake engine serves without torch
    from torch import Tensor

MEAN = "mean"
CLS = "cls"

SHORTEST = 1e-12


def mean(hidden: "Tensor", mask: "Tensor") -> "Tensor":
    """The mean over every real token, special tokens and prompt included.

    Args:
        hidden: [n, length, width].
        mask: [n, length], 1 for a real token and 0 for padding.
    Returns:
        [n, width] float32. Accumulated in float32: half precision drifts on long texts.
    """
    weights = mask.unsqueeze(-1).float()
    return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)


def cls(hidden: "Tensor", mask: "Tensor") -> "Tensor":
    """The first token's hidden state. Arguments as for `mean`; padding stands on the right, so the mask does not matter."""
    del mask
    return hidden[:, 0].float()


POOLINGS = {MEAN: mean, CLS: cls}


def truncate(vectors: Vectors, dim: int) -> Vectors:
    """Keep the first `dim` components, then scale to unit length.

    Args:
        vectors: [n, width] pooled, not yet normalised.
    Returns:
        [n, dim], L2 norm 1.
    Source: Kusupati et al., Matryoshka Representation Learning, 2022.
    """
    kept = vectors[:, :dim]
    lengths = numpy.linalg.norm(kept, axis=1, keepdims=True)
    truncated: Vectors = kept / numpy.maximum(lengths, SHORTEST)
    return truncated
