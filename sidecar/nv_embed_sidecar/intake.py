"""
What becomes of a request, whichever door it comes through: it is checked, tokenised and queued.

In:  texts, and what is wanted of them      Out: their vectors, as soon as they are computed
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy

from nv_embed.errors import InvalidInput
from nv_embed.tracing import Tracing
from nv_embed_sidecar.engines import Vectors
from nv_embed_sidecar.metrics import PRIORITIES, Metrics
from nv_embed_sidecar.models import Model, Models
from nv_embed_sidecar.pooling import truncate
from nv_embed_sidecar.scheduler import Scheduler
from nv_embed_sidecar.spans import Way
from nv_embed_sidecar.tokenising import InputType, TextTokenizer, Truncate

Texts = Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class RequestLimits:
    """The largest request that is looked at."""

    texts: int
    request_bytes: int
    text_bytes: int


@dataclass(frozen=True)
class Wanted:
    """What a caller wants of some texts.

    Attributes:
        model: any name of it; the default model's if empty.
        revision: the only one that will do; any if empty.
        dim: width of the vectors; the model's own if 0.
        interactive: somebody waits for it.
    """

    model: str = ""
    revision: str = ""
    dim: int = 0
    input_type: InputType = InputType.PASSAGE
    truncate: Truncate = Truncate.NONE
    interactive: bool = False


@dataclass
class Begun:
    """A request that is being computed.

    Attributes:
        tokens: of each text, as the engine reads it.
        future: of pooled vectors; None where there are no texts.
        way: what its trace will say of queue and engine; None where it has none.
    """

    model: Model
    dim: int
    tokens: list[int]
    future: "Future[Vectors] | None"
    way: Way | None = None

    def wait(self) -> Vectors:
        """The vectors, [texts, dim] of unit length, once they are there. They are given out once.

        Raises:
            EmbedError, CancelledError: there are none.
        """
        future, self.future = self.future, None
        try:
            return numpy.empty((0, self.dim), numpy.float32) if future is None else self.cut(future.result())
        finally:
            del future  # a failed one holds its error, and the error's traceback this frame
            self.end()

    def cut(self, pooled: Vectors) -> Vectors:
        """What the future gave, at the width that was asked for."""
        return truncate(pooled, self.dim)

    def end(self) -> None:
        """Nothing more becomes of it: its trace is told."""
        way, self.way = self.way, None
        if way is not None:
            way.close()


class Intake:
    """Where requests come in.

    Attributes:
        models: what is served.
        limits: what is refused before anything is done about it.
        metrics: is told what comes in.
        tracing: is told what it costs.
    """

    def __init__(self, models: Models, scheduler: Scheduler, limits: RequestLimits, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self.models = models
        self.limits = limits
        self.metrics = metrics
        self.tracing = tracing or Tracing()
        self._scheduler = scheduler

    def begin(
        self, texts: Texts, wanted: Wanted, *, client: str, deadline: float = math.inf, charge: Callable[[int], None] = lambda _: None
    ) -> Begun:
        """Check, tokenise and queue a request, in the caller's thread.

        Args:
            texts: or the token ids of each, in the model's own vocabulary.
            client: whose turn it takes.
            deadline: `time.monotonic()` after which nobody wants the answer.
            charge: told how many tokens the texts have, once there is room for them in the queue; what it raises refuses them.
        Raises:
            EmbedError: it is not taken.
        """
        model = self.models.find(wanted.model, wanted.revision)
        dim = model.dim(wanted.dim)
        priority = PRIORITIES[wanted.interactive]
        self.tracing.tell(model=model.name, dim=dim, input_type=wanted.input_type.value, priority=priority, texts=len(texts))
        self.check(texts)
        if not texts:
            return Begun(model, dim, [], None)
        self._scheduler.check(model.engine, len(texts), interactive=wanted.interactive, client=client)
        with self.tracing.span("tokenise", texts=len(texts)):
            ids = _encoded(model.tokenizer, texts, wanted)
            tokens = [len(text) for text in ids]
            self.tracing.tell(tokens=sum(tokens))
        self.tracing.tell(tokens=sum(tokens))
        way = Way.of(self.tracing)
        future = self._scheduler.submit(
            model.engine,
            ids,
            interactive=wanted.interactive,
            deadline=deadline,
            client=client,
            way=way,
            admit=lambda: charge(sum(tokens)),
        )
        self.metrics.queued(model.name, wanted.input_type.value, tokens)
        return Begun(model, dim, tokens, future, way)

    def check(self, texts: Texts) -> None:
        """Refuse more than is looked at.

        Raises:
            InvalidInput: too many texts, or too long ones.
        """
        if len(texts) > self.limits.texts:
            raise InvalidInput(f"{len(texts)} texts exceed the limit of {self.limits.texts} a request", hint="send them in several requests")
        total = 0
        for position, text in enumerate(texts):
            size = len(text.encode() if isinstance(text, str) else text)
            total += size
            if size > self.limits.text_bytes:
                raise InvalidInput(
                    f"{size:,} bytes exceed the limit of {self.limits.text_bytes:,} bytes a text",
                    hint="cut it first, and embed its pieces",
                    position=position,
                )
        if total > self.limits.request_bytes:
            raise InvalidInput(
                f"{total:,} bytes exceed the limit of {self.limits.request_bytes:,} bytes a request", hint="send the texts in several requests"
            )


def _encoded(tokenizer: TextTokenizer, texts: Texts, wanted: Wanted) -> list[list[int]]:
    words = [text for text in texts if isinstance(text, str)]
    if len(words) == len(texts):
        return tokenizer.encode(words, wanted.input_type, wanted.truncate)
    return tokenizer.encode_ids([text for text in texts if not isinstance(text, str)], wanted.input_type, wanted.truncate)
