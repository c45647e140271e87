"""
Any encoder that transformers knows: BERT and its relatives.

In:  token ids      Out: pooled vectors, by way of padded batches of texts of nearly equal length
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from nv_embed.errors import InvalidInput
from nv_embed_sidecar.engines import Vectors
from nv_embed_sidecar.engines.torch_device import TorchDevice
from nv_embed_sidecar.pooling import POOLINGS

MOST_PADDING = 0.1
"""Of a padded batch at most this part may be padding; beyond it, splitting the batch is cheaper."""


class EncoderEngine:
    """A transformers encoder and a pooling."""

    def __init__(self, encoder: Any, pooling: str, device: TorchDevice) -> None:
        self._encoder = encoder
        self._pool = POOLINGS[pooling]
        self._device = device.device
        self.width = int(encoder.config.hidden_size)
        self.device = device.device.type
        self.precision = device.precision

    @classmethod
    def load(cls, directory: Path, architecture: str, pooling: str, device: TorchDevice) -> "EncoderEngine":
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            encoder = AutoModel.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False, use_safetensors=True, attn_implementation="sdpa", dtype=device.dtype
            )
        except ValueError as error:
            raise InvalidInput(
                f"the architecture '{architecture}' of the model in {directory} is not supported",
                hint="supported are the encoders that transformers knows without remote code, and NVIDIA's bidirectional Llama",
            ) from error
        return cls(encoder.to(device.device).eval(), pooling, device)

    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        vectors = numpy.empty((len(batch), self.width), dtype=numpy.float32)
        for positions in groups([len(ids) for ids in batch]):
            vectors[positions] = self._encode_padded([batch[position] for position in positions])
        return vectors

    @torch.inference_mode()
    def _encode_padded(self, batch: Sequence[Sequence[int]]) -> Vectors:
        length = max(map(len, batch))
        ids = numpy.zeros((len(batch), length), dtype=numpy.int64)
        mask = numpy.zeros((len(batch), length), dtype=numpy.int64)
        for row, text in enumerate(batch):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        device_mask = torch.from_numpy(mask).to(self._device)
        hidden = self._encoder(input_ids=torch.from_numpy(ids).to(self._device), attention_mask=device_mask).last_hidden_state
        pooled: Vectors = self._pool(hidden, device_mask).cpu().numpy()
        return pooled


def groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Positions of sequences that are worth padding together, longest first."""
    group: list[int] = []
    tokens = longest = 0
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        if group and longest * (len(group) + 1) * (1 - MOST_PADDING) > tokens + lengths[position]:
            yield group
            group, tokens = [], 0
        if not group:
            longest = lengths[position]
        group.append(position)
        tokens += lengths[position]
    if group:
        yield group
