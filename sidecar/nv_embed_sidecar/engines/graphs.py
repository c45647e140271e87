"""
A model's way through a GPU, recorded once and played again for small batches.

A short text takes the GPU less time than starting a model's hundreds of kernels takes the CPU. A recording starts them all at once; it has a fixed
number of rows and texts, and batches are filled up to it with rows of no text and texts of no tokens.

In:  a model, a small batch      Out: hidden states of its tokens
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nv_embed_sidecar.engines.packing import Packed, fixed, most_tiles, padded
from nv_embed_sidecar.engines.torch_device import LEAST_ROWS_ON_CUDA, TorchDevice

log = logging.getLogger(__name__)

ROWS = (LEAST_ROWS_ON_CUDA, 512, 1024)
"""Of the recordings; larger batches keep the GPU busy for longer than it takes to start the kernels."""

TEXTS = 64
"""Most texts of a batch that is played."""

FURTHEST = 0.1
"""Relative distance at which a recording is taken to be wrong; what half precision rounds off, and layers make more of, is well below."""

TRIAL_IDS = 16
"""Token ids that every model has."""

Compute = Callable[[], Tensor]


@dataclass(frozen=True)
class Recording:
    """A model for batches of a fixed size.

    Attributes:
        numbers: the array of `padded`, on the device, which `play` reads.
        play: computes hidden states, [rows, width], in the same place each time.
    """

    numbers: Tensor
    packed: Packed
    play: Compute

    def __call__(self, batch: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        self.numbers.copy_(_filled(batch, self.packed.rows))
        tokens = sum(map(len, batch))
        return self.play()[:tokens], self.packed.bounds[: len(batch) + 1]


class Graphs:
    """The recordings of a model.

    Args:
        record: computes something once, and returns what computes it again from the same memory.
    """

    def __init__(self, model: Callable[[Packed], Tensor], device: TorchDevice, record: Callable[[Compute], Compute]) -> None:
        self._recordings = [_recording(model, rows, device, record) for rows in ROWS]

    def find(self, texts: int, tokens: int) -> Recording | None:
        """The smallest recording that a batch fits in, if there is one."""
        fitting = (recording for recording in self._recordings if recording.packed.rows >= tokens)
        return next(fitting, None) if texts <= TEXTS else None


def _recording(model: Callable[[Packed], Tensor], rows: int, device: TorchDevice, record: Callable[[Compute], Compute]) -> Recording:
    """Record, and compare with what the model computes otherwise.

    Raises:
        Exception: it cannot be recorded, or comes out wrong.
    """
    batch = [[(text + place) % TRIAL_IDS for place in range(rows // TEXTS)] for text in range(3 * TEXTS // 4)]
    numbers = _filled(batch, rows).to(device.device)
    packed = fixed(numbers, rows, TEXTS)
    recording = Recording(numbers, packed, record(lambda: model(packed)))
    found, _ = recording(batch)
    expected = model(device.pack(batch))[: len(found)]
    if not float((found - expected).norm()) <= FURTHEST * float(expected.norm()):
        raise ArithmeticError(f"what was recorded for {rows} rows computes something else")
    return recording


def _filled(batch: Sequence[Sequence[int]], rows: int) -> Tensor:
    return padded(batch, rows, TEXTS, most_tiles(rows, TEXTS))


def record_cuda(compute: Compute) -> Compute:
    """Record what is computed on a GPU."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        compute()  # what is made or measured at a first call must not be recorded
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        computed = compute()

    def play() -> Tensor:
        graph.replay()
        return computed

    return play


@torch.inference_mode()
def recorded(model: Callable[[Packed], Tensor], device: TorchDevice) -> Graphs | None:
    """The recordings of a model on a GPU, where they can be made."""
    try:
        return Graphs(model, device, record_cuda)
    except (RuntimeError, ArithmeticError) as error:
        log.warning("short texts are slower than they could be, because the model cannot be recorded: %s", error)
        return None
