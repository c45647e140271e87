"""
The tensors of a checkpoint, one at a time.

In:  safetensors files      Out: tensors by name, each checked against the shape that the configuration demands
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from nv_embed.errors import InvalidInput

PREFIXES = ("model.", "bert.", "roberta.")
UNUSED = ("lm_head.", "cls.", "pooler.", "rotary_emb.", "embeddings.position_ids")
"""Tensors that no vector depends on."""


class Checkpoint:
    """Open files of one checkpoint. Names are without the prefix that some checkpoints give them."""

    def __init__(self, files: Sequence[tuple[Path, Any]]) -> None:
        self._where = str(files[0][0].parent)
        self._left = {_plain(name): (opened, name) for _, opened in files for name in opened.keys()}  # noqa: SIM118  (not a dict)

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor, as it is stored; it cannot be taken again.

        Raises:
            InvalidInput: there is none of this name and shape.
        """
        if name not in self._left:
            raise self._wrong(f"it has no {name}")
        opened, stored = self._left.pop(name)
        tensor: Tensor = opened.get_tensor(stored)
        if tuple(tensor.shape) != shape:
            raise self._wrong(f"{name} is {list(tensor.shape)}, not {list(shape)}")
        return tensor

    def has(self, name: str) -> bool:
        return name in self._left

    def finish(self) -> None:
        """Say that every tensor that matters was taken.

        Raises:
            InvalidInput: there are more, so the configuration is another model's.
        """
        left = [name for name in self._left if not name.startswith(UNUSED) and not name.endswith("rotary_emb.inv_freq")]
        if left:
            raise self._wrong(f"it has {min(left)} and {len(left) - 1} more that the configuration does not know")

    def _wrong(self, why: str) -> InvalidInput:
        return InvalidInput(f"the weights in {self._where} are not those of its config.json: {why}", hint="is the download complete?")


@contextmanager
def opened(files: Sequence[Path]) -> Iterator[Checkpoint]:
    with ExitStack() as stack:
        yield Checkpoint([(file, stack.enter_context(safe_open(file, framework="pt"))) for file in files])


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
