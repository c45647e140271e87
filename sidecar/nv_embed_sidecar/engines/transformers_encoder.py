"""
Any other encoder that transformers knows.

It is given rectangles of texts of one length: no padding, no mask, and so nothing that a vector could take from its neighbours.

In:  packed token ids      Out: hidden states of every token
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from nv_embed.errors import InvalidInput
from nv_embed_sidecar.engines.packing import Packed, pack
from nv_embed_sidecar.engines.torch_device import TorchDevice


class TransformersEncoder:
    """A transformers model whose output is hidden states."""

    compiled = False
    recordable = False

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.width = int(encoder.config.hidden_size)
        weights = sum(weight.numel() for name, weight in encoder.named_parameters() if "embeddings" not in name)
        self.linear_work = 2 * weights
        self.attention_work = 4 * int(encoder.config.num_hidden_layers) * self.width

    @classmethod
    def load(cls, directory: Path, architecture: str, device: TorchDevice) -> "TransformersEncoder":
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        for attention in ("sdpa", "eager"):  # not every architecture has the quicker one
            try:
                encoder = AutoModel.from_pretrained(
                    directory, local_files_only=True, trust_remote_code=False, use_safetensors=True, attn_implementation=attention, dtype=device.dtype
                )
            except ValueError as error:
                refused = error
            else:
                model = cls(encoder.to(device.device).eval())
                model.check_sees_the_whole_text(device)
                return model
        raise InvalidInput(
            f"the architecture '{architecture}' of the model in {directory} is not supported",
            hint="supported are the encoders that transformers knows without remote code, and bidirectional Llama and Mistral",
        ) from refused

    @torch.inference_mode()
    def check_sees_the_whole_text(self, device: TorchDevice) -> None:
        """Refuse a causal model: its vectors would be plausible and wrong."""
        first, other = (self(pack([[1, 2, 3, 1, 2, 3, 1, last]], device.device))[0] for last in (2, 3))
        if torch.equal(first, other):
            raise InvalidInput("the model is causal: a token does not see what follows it", hint="serve a model that was trained as an encoder")

    def __call__(self, packed: Packed) -> Tensor:
        parts = []
        for run in packed.runs:
            ids = packed.ids[run.start : run.start + run.texts * run.length].view(run.texts, run.length)
            parts.append(self._encoder(input_ids=ids).last_hidden_state.flatten(0, 1))
        rows = torch.cat(parts)
        return torch.cat((rows, rows.new_zeros(packed.rows - len(rows), self.width)))
