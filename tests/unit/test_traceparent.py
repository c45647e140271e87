"""
Which trace a session's calls are part of, by its setting or by its statement's comment.
"""

import subprocess
import sys

import pytest

from nv_embed import traceparent
from nv_embed.traceparent import of_session

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-00"
CARRIED = (("traceparent", TRACE),)


@pytest.mark.parametrize(
    "end",
    [
        f"SELECT 1 /*traceparent='{TRACE}'*/",
        f"SELECT 1 /*traceparent='{TRACE}'*/;\n ",
        f"SELECT 1 /*db_driver='psycopg',\ntraceparent='{TRACE}',tracestate='a%3D1'*/",
        f"SELECT /* first */ 1 /*action='a',traceparent='{TRACE}'*/",
    ],
)
def test_the_comment_that_ends_a_statement_says_its_trace(end: str) -> None:
    assert of_session(None, end) == CARRIED
    assert of_session("", end) == CARRIED


@pytest.mark.parametrize(
    "end",
    [
        f"SELECT '/*traceparent=''{TRACE}''*/'",
        f"SELECT '/*traceparent=''{TRACE}''' /*app='x'*/",
        f"SELECT $$/*traceparent='{TRACE}'*/$$",
        f"SELECT 1 /*traceparent='{TRACE}'*/, 2",
        f"SELECT 1 -- traceparent='{TRACE}'",
        f"SELECT 1 /*x_traceparent='{TRACE}'*/",
        "SELECT 1",
        "",
    ],
)
def test_nothing_else_in_a_statement_does(end: str) -> None:
    assert of_session(None, end) == ()


def test_the_setting_goes_before_the_comment() -> None:
    assert of_session(TRACE, f"SELECT 1 /*traceparent='{OTHER}'*/") == CARRIED


@pytest.mark.parametrize(
    "said",
    [
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        TRACE.upper(),
        TRACE + "\n",
        TRACE + "-more",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "nonsense\r\nauthorization: Bearer x",
    ],
)
def test_what_is_malformed_is_no_trace(said: str) -> None:
    assert of_session(said, None) == ()
    assert of_session(None, f"SELECT 1 /*traceparent='{said}'*/") == ()


def test_a_program_without_opentelemetry_is_not_made_to_import_it() -> None:
    program = """
import sys
from nv_embed.client import Client
with Client("unix:/nowhere") as client:
    assert client._trace() == ()
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_a_current_span_a_call_says_nothing() -> None:
    import opentelemetry.trace  # noqa: F401 - so that there could be one

    assert traceparent.of_current_span() == ()
    assert traceparent.ids_of_current_span() == {}
