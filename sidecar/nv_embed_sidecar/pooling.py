"""
From one vector a token to one vector a text, at the width that was asked for.

In:  hidden states of packed texts      Out: pooled vectors; truncated and normalised ones
"""

from typing import TYPE_CHECKING

import numpy

from nv_embed_sidecar.engines import Vectors

if TYPE_CHECKING:  # the fake engine serves without torch
    from torch import Tensor

MEAN = "mean"
CLS = "cls"

SHORTEST = 1e-12


def mean(hidden: "Tensor", bounds: "Tensor") -> "Tensor":
    """The mean over every token of a text, special tokens and prompt included.

    Args:
        hidden: [tokens, width], text behind text.
        bounds: [n + 1], the row at which each text begins, and the last one's end.
    Returns:
        [n, width] float32. Accumulated in float32: half precision drifts on long texts.
    """
    import torch

    return torch.segment_reduce(hidden.float(), "mean", offsets=bounds, axis=0)


def cls(hidden: "Tensor", bounds: "Tensor") -> "Tensor":
    """The first token's hidden state. Arguments as for `mean`."""
    return hidden[bounds[:-1]].float()


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
