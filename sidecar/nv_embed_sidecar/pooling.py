"""
From one vector a token to one vector a text, at the width that was asked for.

In:  hidden states of texts of one length      Out: pooled vectors; truncated and normalised ones
"""

from typing import TYPE_CHECKING

import numpy

from nv_embed_sidecar.engines import Vectors

if TYPE_CHECKING:  # the fake engine serves without torch
    from torch import Tensor

MEAN = "mean"
CLS = "cls"

SHORTEST = 1e-12


def mean(hidden: "Tensor") -> "Tensor":
    """The mean over every token, special tokens and prompt included.

    Args:
        hidden: [n, length, width], texts of one length.
    Returns:
        [n, width] float32. Accumulated in float32: half precision drifts on long texts.
    """
    return hidden.float().mean(dim=1)


def cls(hidden: "Tensor") -> "Tensor":
    """The first token's hidden state. Arguments as for `mean`."""
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
