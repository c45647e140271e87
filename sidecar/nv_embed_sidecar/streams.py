"""
Reading ahead.

Whoever sends a stream of requests should not wait for each answer before the next request is looked at: the engine would stand still in between. A
thread of the stream's own therefore begins a few requests ahead, while the answers leave in order. It ends when the stream of requests does, or with
the first request that cannot be begun.

In:  requests, and what begins one      Out: answers, in order
"""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from nv_embed.errors import Overloaded

R = TypeVar("R", contravariant=True)
A = TypeVar("A", covariant=True)


class Begun(Protocol[A]):
    """A request that is being worked on."""

    def wait(self) -> A: ...


class ReadAhead(Generic[R, A]):
    """One stream.

    Args:
        requests: may block, and end or raise when the call is over.
        begin: checks and queues a request.
        most: requests that may have been begun and not be answered.
    """

    def __init__(self, requests: Iterator[R], begin: Callable[[R], Begun[A]], most: int) -> None:
        self._requests = requests
        self._begin = begin
        self._most = most
        self._begun: SimpleQueue[Begun[A] | Exception | None] = SimpleQueue()
        self._changed = threading.Condition()
        self._under_way = 0
        self._closed = False

    def answers(self) -> Iterator[A]:
        """The answers.

        Raises:
            Exception: what the first request failed with that did; nothing comes after it.
        """
        threading.Thread(target=self._read, name="stream", daemon=True).start()
        try:
            while (begun := self._begun.get()) is not None:
                if isinstance(begun, Exception):
                    raise begun
                yield begun.wait()
                with self._changed:
                    self._under_way -= 1
                    self._changed.notify()
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify()

    def _read(self) -> None:
        try:
            for request in self._requests:
                self._begun.put(self._begin_in_turn(request))
                if not self._wait_until(self._most - 1):
                    return
            self._begun.put(None)
        except Exception as error:  # noqa: BLE001, whoever reads the answers raises it
            self._begun.put(error)

    def _begin_in_turn(self, request: R) -> Begun[A]:
        """Begin a request; while the stream's own earlier ones fill the queue, it waits for them and is not refused."""
        while True:
            under_way = self._under_way
            try:
                begun = self._begin(request)
            except Overloaded:
                if not under_way or not self._wait_until(under_way - 1):
                    raise
            else:
                with self._changed:
                    self._under_way += 1
                return begun

    def _wait_until(self, under_way: int) -> bool:
        """Wait until no more than so many are under way. Returns whether the stream still goes on."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._under_way <= under_way)
            return not self._closed
