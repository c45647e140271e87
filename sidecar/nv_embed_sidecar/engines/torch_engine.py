"""
A model on a device, as the scheduler's engine.

On the CPU a batch is dealt out to as many threads as there are cores, each with texts of its own: they wait for each other once a batch instead of at
every product. A text that is too long for that has all cores to itself, and a batch that one core does as well is computed by the thread that brings
it: a second one may do so meanwhile.

In:  token ids      Out: pooled vectors, and what the device was measured to do
"""

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import numpy
import torch
from torch import Tensor

from nv_embed_sidecar.engines import Capacity, OutOfMemory, Vectors, kernels
from nv_embed_sidecar.engines.graphs import Graphs, Recording, recorded
from nv_embed_sidecar.engines.linear import ROWS
from nv_embed_sidecar.engines.packing import Packed, pieces
from nv_embed_sidecar.engines.torch_device import TorchDevice

log = logging.getLogger(__name__)

ONE_CORE_WORK = 1e9
"""Operations up to which one core is quicker than several: they lose more by waiting for each other than they gain."""

PIECE_TOKENS = {False: ROWS, True: 2048}
"""Tokens that one core computes at a time: with PyTorch's kernels few enough to stay in its cache, with ours enough for the weights that pass by."""

UNEVEN = 1.5
"""How much longer than the others a thread may take before the batch is better computed by all threads together."""

ATTENTION_PENALTY = {"cpu": 4.0, "cuda": 1.5}
"""How much slower than the products' an operation of attention is."""

BATCH_S = 0.07
"""How long a batch should take: a query that arrives meanwhile waits so long."""

MEMORY_SHARE = 0.5
"""Of the device's free memory, what one batch may use."""

OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "could not create a memory object")

TRIAL_TOKENS = 64
TRIAL_TEXTS = 32
"""Of a trial of the device's memory: together more than is recorded, because a recording has its memory already."""

TRIALS = 3
MOST_TRIAL_TOKENS = 1 << 16


class Model(Protocol):
    """Token ids to hidden states.

    Attributes:
        linear_work: operations a token in the products.
        attention_work: operations a token, and a token that it attends to.
        compiled: whether the compiled kernels compute it.
        recordable: whether it reads nothing of a batch but what lies on the device.
    """

    width: int
    linear_work: int
    attention_work: int
    compiled: bool
    recordable: bool

    def __call__(self, packed: Packed) -> Tensor:
        """Hidden states, [rows, width]."""
        ...


class TorchEngine:
    """A model with a pooling.

    Args:
        load: reads the model from its files.
    """

    def __init__(self, load: Callable[[], Model], pooling: str, device: TorchDevice) -> None:
        self._load = load
        self._pool = device.pooling(pooling)
        self._device = device
        self._threads = device.threads if device.device.type == "cpu" else 1
        self._workers = ThreadPoolExecutor(self._threads, thread_name_prefix="engine", initializer=_compute_with, initargs=(1,))
        self._graphs: Graphs | None = None
        with _memory_errors():
            self._take(load())
        self.width = self._model.width
        self.device = device.device.type
        self.precision = device.precision
        self._square = self._model.attention_work / self._model.linear_work * ATTENTION_PENALTY[self.device]
        self.capacity = measure(self)
        whose = kernels.LEVELS[kernels.level()] if self._model.compiled else "Triton" if device.fused else "PyTorch"
        log.info("measured %.0f tokens/s by %s, batches of %d tokens", self.capacity.tokens_per_s, whose, self.capacity.batch_tokens)

    def cost(self, tokens: int) -> float:
        return tokens + self._square * tokens * tokens

    def beside_tokens(self) -> int:
        """What one core computes alone: the system shares the cores among the threads. A GPU would take one after the other anyway."""
        return int(ONE_CORE_WORK / self._model.linear_work) if self.device == "cpu" else 0

    def rows(self, lengths: Sequence[int]) -> int:
        parts = self._parts(lengths, self._useful_threads(sum(lengths)))
        return sum(self._rows([lengths[position] for position in part]) for part in parts)

    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        with _memory_errors():
            return self._encode(batch)

    def rebuild(self) -> None:
        # There may be no room for two, and none at all after a load that failed. What is asked of its shape meanwhile is still known.
        self.__dict__.pop("_model", None)
        self._graphs = None
        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()  # raises if the context is lost, which only a new process can mend
            torch.cuda.empty_cache()
        with _memory_errors():
            self._take(self._load())

    @torch.inference_mode()
    def hidden_states(self, ids: Sequence[int]) -> Tensor:
        """Hidden states of one text, [len(ids), width] float32."""
        return self._model(self._device.pack([ids]))[: len(ids)].float()

    def _take(self, model: Model) -> None:
        self._model = model
        self._linear_work, self._compiled = model.linear_work, model.compiled
        self._graphs = recorded(model, self._device) if model.recordable else None

    def _encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        lengths = [len(ids) for ids in batch]
        vectors = numpy.empty((len(batch), self.width), dtype=numpy.float32)
        threads = self._useful_threads(sum(lengths))
        parts = self._parts(lengths, threads)
        texts = [[batch[position] for position in part] for part in parts]
        if threads > 1 and self._is_even(lengths, parts, threads):
            computed = self._workers.map(self._compute, texts)
        else:
            _compute_with(threads)
            computed = map(self._compute, texts)
        for part, of_part in zip(parts, computed, strict=True):
            vectors[part] = of_part
        return vectors

    def _useful_threads(self, tokens: int) -> int:
        return 1 if tokens * self._linear_work <= ONE_CORE_WORK else self._threads

    def _parts(self, lengths: Sequence[int], threads: int) -> list[list[int]]:
        """Positions of the texts that are computed together: on a GPU all, on the CPU as many as one core is good for."""
        rounds = -(-sum(lengths) // (PIECE_TOKENS[self._compiled] * threads)) if self.device == "cpu" else 1
        return pieces(lengths, rounds * threads, self.cost)

    def _is_even(self, lengths: Sequence[int], parts: Sequence[Sequence[int]], threads: int) -> bool:
        """Whether the threads would be done at about the same time."""
        costs = [sum(self.cost(lengths[position]) for position in part) for part in parts]
        return max(costs) * threads <= UNEVEN * sum(costs)

    @torch.inference_mode()
    def _compute(self, batch: Sequence[Sequence[int]]) -> Vectors:
        vectors: Vectors = self._pool(*self._states(batch)).cpu().numpy()
        return vectors

    def _states(self, batch: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Hidden states of a batch's tokens, [tokens, width], and its texts' bounds, as in `Packed`."""
        recording = self._recording([len(ids) for ids in batch])
        if recording is not None:
            return recording(batch)
        packed = self._device.pack(batch)
        return self._model(packed)[: packed.tokens], packed.bounds

    def _rows(self, lengths: Sequence[int]) -> int:
        recording = self._recording(lengths)
        return self._device.rows(sum(lengths)) if recording is None else recording.packed.rows

    def _recording(self, lengths: Sequence[int]) -> Recording | None:
        return self._graphs.find(len(lengths), sum(lengths)) if self._graphs is not None else None


def _compute_with(threads: int) -> None:
    """This thread's products are computed by so many."""
    torch.get_num_threads()  # a thread that has never asked takes over what another one set last, even after it said otherwise
    torch.set_num_threads(threads)


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Not every allocator has an exception of its own."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory("the device's memory ran out") from error
    except RuntimeError as error:
        if any(words in str(error) for words in OUT_OF_MEMORY):
            raise OutOfMemory("the device's memory ran out") from error
        raise


def measure(engine: TorchEngine) -> Capacity:
    """How fast an engine is, and how much a batch should hold: as much as it does in `BATCH_S`, if its memory allows."""
    rate, most = _rate(engine)
    if engine.device == "cuda":
        most = min(most, _fitting_tokens(engine))
    tokens = max(min(int(rate * BATCH_S), most), TRIAL_TOKENS)
    return Capacity(tokens_per_s=rate, batch_tokens=tokens, most_tokens=max(most, tokens), beside_tokens=engine.beside_tokens())


def _rate(engine: TorchEngine) -> tuple[float, int]:
    """Tokens a second in batches that grow until they take long enough, and how large a batch may be for all that is known."""
    text = [0] * TRIAL_TOKENS
    rate, texts = 0.0, 1
    while texts * TRIAL_TOKENS <= MOST_TRIAL_TOKENS:
        try:
            seconds = min(_seconds(engine, [text] * texts) for _ in range(TRIALS))
        except OutOfMemory:
            if texts == 1:
                raise
            return rate, texts * TRIAL_TOKENS // 2
        rate = max(rate, texts * engine.cost(TRIAL_TOKENS) / seconds)
        if seconds > BATCH_S / 2:
            break
        texts *= 2
    return rate, MOST_TRIAL_TOKENS


def _seconds(engine: TorchEngine, batch: Sequence[Sequence[int]]) -> float:
    begun = time.perf_counter()
    engine.encode(batch)
    return time.perf_counter() - begun


def _fitting_tokens(engine: TorchEngine) -> int:
    """Tokens of a batch that fits the device's free memory, by what a trial batch takes."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    free, _ = torch.cuda.mem_get_info()
    engine.encode([[0] * TRIAL_TOKENS] * TRIAL_TEXTS)
    taken = max(torch.cuda.max_memory_allocated() - before, 1)
    return int(MEMORY_SHARE * free / taken * TRIAL_TOKENS * TRIAL_TEXTS)
