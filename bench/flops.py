"""
What a model costs: floating-point operations of a text, counted from its configuration.

Counted are the products of matrices, two operations for a multiplication with its addition; norms, activations, embeddings and the softmax are not.

In:  config.json, lengths in tokens      Out: operations
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

GATED = ("silu", "swish")


@dataclass(frozen=True)
class Shape:
    """The parts of a transformer that its cost depends on.

    Attributes:
        matrices: input and output width of a layer's weights: query, key and value as one; output; up (with the gate where there is one); down.
        attended: components of all query heads together.
    """

    layers: int
    matrices: tuple[tuple[int, int], ...]
    attended: int

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Shape":
        """The shape that a `config.json` of a BERT, a Llama or one of their relatives describes."""
        width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        heads = int(config["num_attention_heads"])
        head_width = int(config.get("head_dim") or width // heads)
        attended = heads * head_width
        keys = int(config.get("num_key_value_heads") or heads) * head_width
        up = 2 * inner if config.get("hidden_act") in GATED else inner
        return cls(int(config["num_hidden_layers"]), ((width, attended + 2 * keys), (attended, width), (width, up), (inner, width)), attended)

    @property
    def linear_flop(self) -> int:
        """Operations of one token in the weights of all layers."""
        return 2 * self.layers * sum(width * height for width, height in self.matrices)

    def flop(self, lengths: Iterable[int]) -> int:
        """Operations of some texts: the weights once a token, attention once a pair of tokens of one text."""
        return sum(length * (self.linear_flop + 4 * self.layers * self.attended * length) for length in lengths)
