"""
One line an event, on stderr: for people, or as JSON for programs.

An exception becomes its type and the places it passed, in the same line. Its message is left out, because messages quote what they choke on, and
that may be somebody's text.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from nv_embed import traceparent


class OneLine(logging.Formatter):
    """`2026-01-31T12:00:00 WARNING nv_embed_sidecar.scheduler what happened | ValueError at scheduler.py:120 _compute, engine.py:40 encode`"""

    def __init__(self) -> None:
        super().__init__("{asctime} {levelname} {name} {message}", datefmt="%Y-%m-%dT%H:%M:%S", style="{")

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record, self.datefmt)
        line = self.formatMessage(record)
        if record.exc_info and record.exc_info[0] is not None:
            line += f" | {record.exc_info[0].__name__} at {_places(record.exc_info[2])}"
        return line.replace("\n", " ")


class Json(logging.Formatter):
    """`{"at":"2026-01-31T12:00:00+00:00","level":"WARNING","logger":"…","message":"…","error":"ValueError","places":"scheduler.py:120 _compute"}`

    While a span is current, `trace_id` and `span_id` are there too.
    """

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            said |= {"error": record.exc_info[0].__name__, "places": _places(record.exc_info[2])}
        said |= traceparent.ids_of_current_span()
        return json.dumps(said, ensure_ascii=False)


def set_up(*, as_json: bool = False) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if as_json else OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("nv_embed_sidecar").setLevel(logging.INFO)


def _places(trace: TracebackType | None) -> str:
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace))
