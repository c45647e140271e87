"""
What pgspot finds in the scripts that are installed.

pgspot looks for names that whoever may create objects could take over: functions without a pinned search_path, unqualified operators and calls where
none is pinned. Two things of ours it cannot read as they are. SQL-standard bodies it does not know: they are given to it as texts. And its parser of
PL/pgSQL has no catalog, so variables of a table's row type stop it: such a body is left out, which is fine where search_path is pinned, since nothing
in it would be found, and is a finding of our own where it is not.

In:  scripts; findings that are no fault, each with its reason (spot.toml)      Out: the other findings; exit status 1 if there are any
"""

import re
import sys
import tomllib
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from pglast import ast, parse_sql
from pglast.parser import ParseError
from pglast.stream import RawStream
from pgspot.formatters import format_function
from pgspot.state import Counter, State
from pgspot.visitors import visit_sql

EXCEPTIONS = Path(__file__).with_name("spot.toml")

NO_PATH = "PS005"
UNREAD = "unread"
"""A body that cannot be read, and whose names depend on the caller's search_path."""


@dataclass(frozen=True)
class Finding:
    """A line of pgspot's.

    Attributes:
        is_bound: whether its names are looked up once, when the script runs, and not when a function is called.
    """

    code: str
    text: str
    is_bound: bool


@dataclass(frozen=True)
class Excuse:
    """Findings that are no fault.

    Attributes:
        codes: one of which the finding has.
        text: what it is to match from its start; None: whatever it says.
        is_bound: what that of the finding is; None: either.
    """

    codes: frozenset[str]
    text: re.Pattern[str] | None
    is_bound: bool | None

    def holds(self, finding: Finding) -> bool:
        return (
            finding.code in self.codes
            and self.is_bound in (None, finding.is_bound)
            and (self.text is None or self.text.match(finding.text) is not None)
        )


def excuses(content: str) -> list[Excuse]:
    """What spot.toml says. An entry without a reason is an error."""
    entries = tomllib.loads(content)["exception"]
    assert all(entry["reason"] for entry in entries)
    return [Excuse(frozenset(entry["codes"]), re.compile(entry["text"]) if "text" in entry else None, entry.get("bound")) for entry in entries]


def findings(script: str) -> Iterator[Finding]:
    """What pgspot says of a script, statement by statement."""
    script = re.sub(r"^\\.*$", "", script, flags=re.MULTILINE).replace("@extschema@", "extschema")
    # Both see every statement, because each remembers which schemas and functions the script makes.
    full, headers = State(Counter(_arguments(bodies=True))), State(Counter(_arguments(bodies=False)))
    for raw in parse_sql(script):
        text = script[raw.stmt_location : raw.stmt_location + raw.stmt_len] if raw.stmt_len else script[raw.stmt_location :]
        has_sql_body = isinstance(raw.stmt, ast.CreateFunctionStmt) and raw.stmt.sql_body is not None
        is_bound = has_sql_body or not isinstance(raw.stmt, ast.CreateFunctionStmt)
        if has_sql_body:
            text = _with_text_for_body(raw.stmt)
        found = _said(headers, text)
        try:
            found = _said(full, text)
        except ParseError as error:
            if any(code == NO_PATH for code, _ in found):
                found = [*found, (UNREAD, f"{format_function(raw.stmt)}: {error.args[0]}")]
        # A body whose names are bound needs no search_path.
        yield from (Finding(code, said, is_bound) for code, said in found if not (has_sql_body and code == NO_PATH))


def _arguments(*, bodies: bool) -> Namespace:
    """What pgspot's command line would make."""
    return Namespace(plpgsql=bodies, summary_only=False, ignore=[], ignore_lang=["plpython3u"], proc_without_search_path=[], sql_fn=[])


def _said(state: State, statement: str) -> list[tuple[str, str]]:
    """Code and context of each line of pgspot's about a statement."""
    with redirect_stdout(StringIO()) as output:
        visit_sql(state, statement, toplevel=True)
    # What it does not understand it says without a code.
    lines = [re.fullmatch(r"(PS\d+): [^:]*: (.*) at line \d+|(.*)", line) for line in output.getvalue().splitlines()]
    return [(line[1], line[2]) if line[1] else ("unknown", line[3]) for line in lines if line is not None]


def _with_text_for_body(function: ast.CreateFunctionStmt) -> str:
    body = function.sql_body
    statements = (
        [f"SELECT {RawStream()(body.returnval)}"] if isinstance(body, ast.ReturnStmt) else [RawStream()(each) for part in body for each in part]
    )
    as_text = ast.DefElem(defname="as", arg=(ast.String(sval="; ".join(statements)),))
    copy = ast.CreateFunctionStmt(
        replace=function.replace,
        funcname=function.funcname,
        parameters=function.parameters,
        returnType=function.returnType,
        options=(*function.options, as_text),
    )
    return str(RawStream()(copy))


def main(paths: Sequence[str]) -> int:
    known = excuses(EXCEPTIONS.read_text())
    found = [(Path(path).name, finding) for path in paths for finding in findings(Path(path).read_text())]
    left = [(name, finding) for name, finding in found if not any(excuse.holds(finding) for excuse in known)]
    idle = [excuse for excuse in known if not any(excuse.holds(finding) for _, finding in found)]
    for name, finding in left:
        print(f"{name}: {finding.code}: {finding.text}", file=sys.stderr)
    for excuse in idle:
        print(f"{EXCEPTIONS.name}: nothing is found that {excuse} excuses: take it out", file=sys.stderr)
    if left or idle:
        print(f"pgspot --explain CODE says what is wrong; what is no fault goes into {EXCEPTIONS.name}, with its reason", file=sys.stderr)
        return 1
    print(f"pgspot: {len(found)} findings in {len(paths)} scripts, each with its reason in {EXCEPTIONS.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
