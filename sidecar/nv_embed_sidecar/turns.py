"""
Interactive before bulk, and a share for bulk.

Interactive batches go first, so that a query waits for the one batch under way and no more, or not even that, where the engine can compute it beside.
But while bulk waits too, interactive work may run ahead of its share of the engine's time by no more than one full batch: a flood of queries leaves
bulk its share, and a query now and then never notices.

In:  two queues, and how long each batch took      Out: the next batch
"""

from collections.abc import Callable

from nv_embed_sidecar.queues import Batch, Queue, Request

# Of the engine's time, while queries wait too. A little over half, so that the gaps between a client's requests do not take bulk below half its rate.
BULK_SHARE = 0.6


class Turns:
    """The two queues, and whose turn it is."""

    def __init__(self) -> None:
        self.interactive = Queue()
        self.bulk = Queue()
        # Engine seconds by which interactive work is ahead. Only time for which both kinds waited counts, so that nothing is saved up.
        self._lead_s = 0.0
        # Batches under way that were cut while both waited.
        self._contested: set[Batch] = set()

    def queue(self, *, interactive: bool) -> Queue:
        return self.interactive if interactive else self.bulk

    def everyone(self) -> list[Request]:
        return [*self.interactive.everyone(), *self.bulk.everyone()]

    def cut(self) -> Batch | None:
        """The next batch, if anything waits."""
        return self._begun((self.bulk if self._bulk_is_due() or self.interactive.is_empty() else self.interactive).cut)

    def cut_beside(self) -> Batch | None:
        """A batch of queries that may be computed while a bulk batch is, if one waits and queries are not too far ahead."""
        return None if self._bulk_is_due() else self._begun(self.interactive.cut_beside)

    def ran(self, batch: Batch, seconds: float) -> None:
        """A batch has been dealt with, and kept the engine, or a part of it, busy for so long."""
        contested = batch in self._contested
        self._contested.discard(batch)
        if batch.queue is self.bulk:
            lead_s = self._lead_s - seconds
            self._lead_s = lead_s if contested else max(lead_s, 0.0)
        else:
            self._lead_s = self._lead_s + seconds * BULK_SHARE / (1 - BULK_SHARE) if contested else 0.0

    def _bulk_is_due(self) -> bool:
        return self._both_wait() and self._lead_s >= self.bulk.batch_s()

    def _begun(self, cut: Callable[[], Batch | None]) -> Batch | None:
        contested = self._both_wait()
        batch = cut()
        if batch is not None and contested:
            self._contested.add(batch)
        return batch

    def wait_s(self, queue: Queue) -> float:
        """How long it takes to compute all that waits in a queue."""
        share = BULK_SHARE if queue is self.bulk else 1 - BULK_SHARE
        return queue.seconds() / (share if self._both_wait() else 1.0)

    def _both_wait(self) -> bool:
        return not (self.interactive.is_empty() or self.bulk.is_empty())
