"""
Who may call, and how much.

The file of tokens (`nv_embed/tokens.py`) is looked at again while it is served from, so a token is given out or taken back without a restart. A file
that is broken or gone changes nothing: what was known before stays, and the log says so once.

What a holder may ask for in a minute lies in buckets, which fill evenly and are full at the start. Whatever is no larger than its bucket passes if
that much is in it. What is larger, one page of texts perhaps, passes when the bucket is full and leaves it in debt: refused it would never be
computed, and over the minutes the rate is the same.

In:  the value of an `Authorization` header      Out: the holder of that token
"""

import hmac
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nv_embed import tokens
from nv_embed.errors import Overloaded, Unauthenticated
from nv_embed.tokens import BadTokens, Entry

log = logging.getLogger(__name__)

LOOK_S = 1.0
SCHEME = "bearer"
MINUTE_S = 60.0

Clock = Callable[[], float]
Stamp = tuple[int, ...] | None


class Bucket:
    """Units that may be taken, `per_minute` at most, which come back evenly within a minute."""

    def __init__(self, per_minute: int, now: Clock) -> None:
        self.per_minute = per_minute
        self._now = now
        self._left = float(per_minute)
        self._filled_at = now()
        self._lock = threading.Lock()

    def take(self, count: int) -> float:
        """Take so many, if they are there or the bucket is full. Returns 0, or the seconds after which to try again."""
        with self._lock:
            now = self._now()
            self._left = min(self.per_minute, self._left + (now - self._filled_at) * self.per_minute / MINUTE_S)
            self._filled_at = now
            missing = min(count, self.per_minute) - self._left
            if missing > 0:
                return missing * MINUTE_S / self.per_minute
            self._left -= count
            return 0.0


class Holder:
    """Somebody with a token. Its methods may be called from any thread.

    Attributes:
        name: as the file has it; whom the scheduler is fair to.
    """

    def __init__(self, name: str, entry: Entry, now: Clock = time.monotonic) -> None:
        self.name = name
        self.entry = entry
        self._requests = Bucket(entry.requests_per_minute, now) if entry.requests_per_minute else None
        self._tokens = Bucket(entry.tokens_per_minute, now) if entry.tokens_per_minute else None

    def spend_request(self) -> None:
        """Count a request that has come in.

        Raises:
            Overloaded: there were too many in the last minute; nothing is counted.
        """
        self._take(self._requests, 1, "requests")

    def spend_tokens(self, count: int) -> None:
        """Count the tokens of a request's texts, as the model reads them, as they are queued.

        Raises:
            Overloaded: there were too many in the last minute; nothing is counted.
        """
        self._take(self._tokens, count, "tokens")

    def _take(self, bucket: Bucket | None, count: int, what: str) -> None:
        if bucket is not None and (wait_s := bucket.take(count)):
            raise Overloaded(
                f"{self.name} may send {bucket.per_minute:,} {what} a minute, and has",
                hint="ask again when the time that this answer names is over, or have the limit raised",
                retry_after_s=wait_s,
            )


class Tokens:
    """The tokens that a file lets in. Its methods may be called from any thread.

    Raises:
        BadTokens: the file cannot be used.
    """

    def __init__(self, path: Path, now: Clock = time.monotonic) -> None:
        self._path = path
        self._now = now
        self._lock = threading.Lock()
        self._stamp = _stamp(path)
        self._holders = self._hold(tokens.read(path))
        self._looked_at = now()

    def holder(self, authorization: str | None) -> Holder:
        """Whose token it is.

        Args:
            authorization: `Bearer` and the token, as HTTP has it; None where the caller sent none.
        Raises:
            Unauthenticated: there is none, or it is nobody's.
        """
        scheme, _, token = (authorization or "").strip().partition(" ")
        if not scheme:
            raise Unauthenticated("a token is missing", hint="send the header authorization: Bearer TOKEN; clients take it as token")
        if scheme.lower() != SCHEME or not token.strip():
            raise Unauthenticated("the header authorization has no bearer token", hint="send authorization: Bearer TOKEN")
        shown = tokens.hash_token(token.strip())
        # All are compared, so that the time it takes tells nothing of which was nearly right.
        found = [holder for holder in self._known() if hmac.compare_digest(holder.entry.sha256, shown)]
        if not found:
            raise Unauthenticated("the token is not one of this sidecar's", hint="ask whoever runs it for one; `nv-embed token add` makes them")
        return found[0]

    def _known(self) -> tuple[Holder, ...]:
        with self._lock:
            now = self._now()
            if now - self._looked_at >= LOOK_S:
                self._looked_at = now
                self._look()
            return self._holders

    def _look(self) -> None:
        """Read the file if it is another one than last time."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._holders = self._hold(tokens.read(self._path))
        except BadTokens as error:
            log.warning("%s; the tokens that were known before stay", error)
        else:
            log.info("%s has changed: %d tokens", self._path, len(self._holders))

    def _hold(self, entries: tokens.Entries) -> tuple[Holder, ...]:
        """Holders for what a file says; who was known before keeps what is in the buckets."""
        known = {holder.name: holder for holder in getattr(self, "_holders", ())}
        return tuple(
            known[name] if name in known and known[name].entry == entry else Holder(name, entry, self._now) for name, entry in entries.items()
        )


def _stamp(path: Path) -> Stamp:
    """What changes when a file does; None where there is none. Its mode is part of it: one that was refused for that may have been mended."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode
