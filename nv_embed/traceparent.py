"""
Which trace a call is part of.

W3C Trace Context is a line of text, `00-<trace>-<span>-<flags>`, that a call carries in its metadata. In a program it comes from OpenTelemetry's
current span; a database session has none, so there it comes from a setting or from the comment that OpenTelemetry's instrumentations put behind a
statement. OpenTelemetry itself is never imported here: nobody has a current span who has not imported it before, and a backend should not.

In:  a session's setting and statement, or the current span      Out: metadata of a call
"""

import re
import sys

Metadata = tuple[tuple[str, str], ...]

KEY = "traceparent"

SETTING = "nv_embed.traceparent"
"""In which a database session says it."""

COMMENT_CHARACTERS = 2048
"""How much of a statement's end is looked at: a comment with all that sqlcommenter knows is a few hundred."""

# All zeros are no trace and no span. Later versions of the standard may mean something else by the same letters.
PATTERN = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# A comment that ends the statement: what merely looks like one, in somebody's text, is followed by a quote.
COMMENT = re.compile(r"/\*((?:(?!/\*|\*/).)*)\*/[\s;]*\Z", re.DOTALL)
ASSIGNMENT = re.compile(r"(?:^|[\s,])traceparent='([^']*)'")


def of_session(setting: str | None, statement_end: str | None) -> Metadata:
    """What a session's calls carry: by the setting where there is one, else by the comment at its statement's end. What is malformed is nothing."""
    said = setting or _comment(statement_end)
    return ((KEY, said),) if said and PATTERN.fullmatch(said) else ()


def of_current_span() -> Metadata:
    """What a program's calls carry: whatever its propagators write of the current span."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items())


def ids_of_current_span() -> dict[str, str]:
    """What a line of a log says of it."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"} if context.is_valid else {}


def _comment(statement_end: str | None) -> str | None:
    # Nearly every statement ends here.
    if not statement_end or "traceparent='" not in statement_end:
        return None
    comment = COMMENT.search(statement_end)
    found = comment and ASSIGNMENT.search(comment[1])
    return found[1] if found else None
