"""
Sessions with a sidecar of their own.

`embed_with(Session, "localhost:50051")` has a factory's sessions embed here what they flush, and the questions that they ask. Without it the database
does both. On an asyncio driver the sidecar is waited for in a thread, so that the loop goes on.

In:  a session factory, a sidecar      Out: the same factory
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Union, cast

from sqlalchemy import event
from sqlalchemy.engine import Result
from sqlalchemy.orm import ORMExecuteState, Session, UOWTransaction, scoped_session, sessionmaker
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.util import await_only

from nv_embed.client import Client
from nv_embed.sqlalchemy import flush, vector
from nv_embed.sqlalchemy.held import Held, hold
from nv_embed.sqlalchemy.question import Question, answered, questions

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import async_sessionmaker  # not everybody has what that needs

EMBEDDED = "nv_embed.embedded"

Sessions = Union[sessionmaker[Any], "async_sessionmaker[Any]", scoped_session[Any], type[Session], Session]


def embed_with(sessions: Sessions, sidecar: str | Client) -> None:
    """Have sessions embed with a sidecar: at a flush all new and changed objects in one call, and the questions of their statements.

    What fails raises one of `nv_embed.errors`, before anything is written; the session can be used as before.

    Args:
        sessions: a factory of sessions or of AsyncSessions, a class of sessions, or one session.
        sidecar: `host:port`, `unix:/path`, or a client. By its address it is connected to at the first use, so in each process after a fork.
    """
    _Embedding(cache(lambda: Client(sidecar)) if isinstance(sidecar, str) else lambda: sidecar).listen(_synchronous(sessions))


def _synchronous(sessions: Sessions) -> Any:
    """What has events: not an AsyncSession, but the session within, which gets a class of its own, so that other factories' are left alone."""
    within = getattr(getattr(sessions, "class_", None), "sync_session_class", None)
    if within is None:
        return sessions
    factory = cast("async_sessionmaker[Any]", sessions)
    embedding: type[Session] = type(within.__name__, (factory.kw.get("sync_session_class", within),), {})
    factory.configure(sync_session_class=embedding)
    return embedding


class _Embedding:
    """What sessions with a sidecar do at their events."""

    def __init__(self, client: Callable[[], Client]) -> None:
        self._client = client

    def listen(self, sessions: Any) -> None:
        event.listen(sessions, "before_flush", self.before_flush)
        event.listen(sessions, "after_flush", self.after_flush)
        event.listen(sessions, "do_orm_execute", self.answer)

    def before_flush(self, session: Session, context: UOWTransaction, _: Any) -> None:
        context.attributes[EMBEDDED] = flush.embed(session, lambda texts, held: self._vectors(texts, held, "passage"))

    def after_flush(self, session: Session, context: UOWTransaction) -> None:
        flush.mend(session, context.attributes.get(EMBEDDED, ()))

    def answer(self, state: ORMExecuteState) -> Result[Any] | None:
        asked = () if state.is_column_load or state.is_relationship_load else questions(cast("ClauseElement", state.statement))
        if not asked:
            return None
        answers: dict[Question, str | None] = {}
        for question in asked:
            held = hold(state.session, question.relation, question.target, dict(state.bind_arguments), is_by_name=question.is_by_name)
            if held is not None:
                answers[question] = vector.written(self._vectors([question.text], held, "query")[0])
        with answered(answers):
            return state.invoke_statement()

    def _vectors(self, texts: Sequence[str], held: Held, input_type: str) -> list[list[float]]:
        def call() -> Any:
            return self._client().embed(texts, dim=held.dim, input_type=input_type, model=held.model, revision=held.revision, truncate=held.truncate)

        return [vector.short(row) for row in (await_only(asyncio.to_thread(call)) if held.is_async else call())]
