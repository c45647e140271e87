"""
Any encoder that transformers knows: BERT and its relatives.

In:  token ids      Out: pooled vectors, by way of padded batches of texts of nearly equal length
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from nv_embed.errors import InvalidInput
from nv_embed_sidecar.engines import Vectors
from nv_embed_sidecar.engines.padding import groups, pad
from nv_embed_sidecar.engines.torch_device import TorchDevice
from nv_embed_sidecar.pooling import POOLINGS

ONE_CORE_WORK = 400e6
"""Weights times tokens up to which one core is quicker than several: they lose more by waiting for each other than they gain."""


class EncoderEngine:
    """A transformers encoder and a pooling."""

    def __init__(self, encoder: Any, pooling: str, device: TorchDevice) -> None:
        self._encoder = encoder
        self._pool = POOLINGS[pooling]
        self._device = device.device
        self._threads = device.threads
        self._weights = sum(weight.numel() for name, weight in encoder.named_parameters() if "embeddings" not in name)
        self.width = int(encoder.config.hidden_size)
        self.device = device.device.type
        self.precision = device.precision

    @classmethod
    def load(cls, directory: Path, architecture: str, pooling: str, device: TorchDevice) -> "EncoderEngine":
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
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
        torch.set_num_threads(1 if sum(map(len, batch)) * self._weights <= ONE_CORE_WORK else self._threads)
        vectors = numpy.empty((len(batch), self.width), dtype=numpy.float32)
        for positions in groups([len(ids) for ids in batch]):
            vectors[positions] = self._encode_padded([batch[position] for position in positions])
        return vectors

    @torch.inference_mode()
    def _encode_padded(self, batch: Sequence[Sequence[int]]) -> Vectors:
        ids, mask = pad(batch, self._device)
        # Without a mask, attention takes its quicker path.
        hidden = self._encoder(input_ids=ids, attention_mask=None if bool(mask.all()) else mask).last_hidden_state
        pooled: Vectors = self._pool(hidden, mask).cpu().numpy()
        return pooled
