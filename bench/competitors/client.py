"""
The whole way: a client, gRPC, and a sidecar that somebody else has started.

    client.py ADDRESS
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from turns import take_turns

from nv_embed.client import Client


class Remote:
    def __init__(self, address: str) -> None:
        self._client = Client(address)

    def about(self) -> Mapping[str, Any]:
        return {"precision": self._client.list_models()[0].precision}

    def prepare(self, texts: Sequence[str]) -> None: ...

    def encode(self, texts: Sequence[str]) -> Any:
        return self._client.embed(texts, truncate="END")


if __name__ == "__main__":
    take_turns(Remote(*sys.argv[1:]))
