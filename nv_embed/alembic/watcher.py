"""
What a migration that waits tells: lines in Alembic's log.
"""

import logging
import time
from datetime import timedelta

from nv_embed.indexes import Progress
from nv_embed.reembed import Status

log = logging.getLogger("alembic.nv_embed")

WARN_S = 30.0


class Lines:
    """A line for each tenth of the rows, for each statement and each phase of it; a warning while nobody does the work."""

    def __init__(self, relation: str) -> None:
        self._relation = relation
        self._said: object = None
        self._warned_at = float("-inf")

    def status(self, status: Status) -> None:
        if status.workers == 0 and time.monotonic() - self._warned_at >= WARN_S:
            self._warned_at = time.monotonic()
            log.warning("re-embedding %s waits, because no worker runs: start nv-embed worker --database-url …", self._relation)
        tenths = None if not status.rows else (status.embedded or 0) * 10 // status.rows
        self._say((tenths, status.failed), f"re-embedding {self._relation}: {_filled(status)}")

    def begin(self, number: int, count: int, statement: str) -> None:
        self._say(statement, f"statement {number} of {count}: {statement}")

    def progress(self, progress: Progress) -> None:
        blocker = progress.blocker
        waits = "" if blocker is None else f", waits for the transaction of process {blocker.pid}"
        self._say((progress.phase, waits), f"{progress.phase or 'at work'}{waits}")

    def remark(self, text: str) -> None:
        log.info(text)

    def _say(self, key: object, line: str) -> None:
        if key != self._said:
            self._said = key
            log.info(line)


def _filled(status: Status) -> str:
    if status.rows is None or status.embedded is None:
        return "counting rows"
    parts = [f"{status.embedded:,} of {status.rows:,} rows"]
    if status.failed:
        parts.append(f"{status.failed:,} failed")
    if status.eta is not None:
        parts.append(f"{timedelta(seconds=round(status.eta.total_seconds()))} left")
    return ", ".join(parts)
