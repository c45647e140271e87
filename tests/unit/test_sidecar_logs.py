"""
Lines of the log: what they say of an exception, and what they keep to themselves.
"""

import json
import logging
import sys
from datetime import datetime

import pytest
from nv_embed_sidecar.logs import Json, OneLine

SECRET = "Xylophonquark"


@pytest.fixture
def record() -> logging.LogRecord:
    try:
        raise ValueError(SECRET)
    except ValueError:
        return logging.LogRecord("nv_embed_sidecar.x", logging.WARNING, __file__, 1, "two\nlines, %s", ("é",), sys.exc_info())


def test_an_event_is_one_line_for_people(record: logging.LogRecord) -> None:
    line = OneLine().format(record)
    assert line.split(" ", 1)[1].startswith("WARNING nv_embed_sidecar.x two lines, é | ValueError at test_sidecar_logs.py:")
    assert "\n" not in line
    assert SECRET not in line


def test_an_event_is_one_object_for_programs(record: logging.LogRecord) -> None:
    line = Json().format(record)
    assert "\n" not in line
    assert SECRET not in line
    said = json.loads(line)
    assert datetime.fromisoformat(said.pop("at")).utcoffset() is not None
    assert said.pop("places").startswith("test_sidecar_logs.py:")
    assert said == {"level": "WARNING", "logger": "nv_embed_sidecar.x", "message": "two\nlines, é", "error": "ValueError"}
