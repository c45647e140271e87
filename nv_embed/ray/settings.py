"""
What a job runs with.

In:  what somebody asks for      Out: values that were checked, which travel to every node
"""

from dataclasses import dataclass, field

from nv_embed.credentials import Credentials
from nv_embed.errors import InvalidInput
from nv_embed.slices import WRITE_S

MOST_RANGE_ROWS = 100_000
"""The jobs of a range are in an actor's memory, and its lease is renewed for all of them."""

MOST_LANES = 32

SHORTEST_LEASE_S = 2.0

MOST_WRITE_S = 10.0


@dataclass(frozen=True)
class Settings:
    """How a job works.

    Attributes:
        database_url: as libpq takes it, the table's owner's; every node must reach it.
        endpoints: of sidecars that serve the model. An actor goes to them in turn, from range to range.
        serve: a model for which each actor starts a sidecar of its own instead, as `nv-embed serve --model` takes it.
        serve_options: further ones of such a sidecar's command line.
        actors: how many there are.
        num_gpus, num_cpus: what Ray sets aside for each actor; one GPU unless said otherwise where it has a sidecar of its own.
        range_rows: of a range, which is one turn of an actor.
        lanes: of each actor; while one waits for the sidecar another one writes.
        lease_s: how long after the last sign of an actor's life others take its rows.
        patience_s: how long an actor tries while the sidecar or the database is away, before the job ends.
        write_s: what writing some rows at once may take; so long nobody else can change them, and each time has a cost of its own.
        timeout_s: for one page of texts.
        credentials: what sidecars are shown, and known by.
    """

    database_url: str = field(repr=False)
    endpoints: tuple[str, ...] = ()
    serve: str | None = None
    serve_options: tuple[str, ...] = ()
    actors: int = 1
    num_gpus: float | None = None
    num_cpus: float = 1.0
    range_rows: int = 5_000
    lanes: int = 3
    lease_s: float = 60.0
    patience_s: float = 300.0
    write_s: float = WRITE_S
    timeout_s: float = 60.0
    credentials: Credentials = field(default_factory=Credentials, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.endpoints, str):
            raise InvalidInput("endpoints is one text, not several", hint="give endpoints=('host:port',)")
        if bool(self.endpoints) == (self.serve is not None):
            raise InvalidInput(
                "an actor has either endpoints to call or a sidecar of its own", hint="give endpoints=('host:port', …), or serve='model', not both"
            )
        _check("actors", self.actors, 1, None)
        _check("range_rows", self.range_rows, 1, MOST_RANGE_ROWS)
        _check("lanes", self.lanes, 1, MOST_LANES)
        _check("lease_s", self.lease_s, SHORTEST_LEASE_S, None)
        _check("write_s", self.write_s, WRITE_S, MOST_WRITE_S)
        _check("patience_s", self.patience_s, 0, None)

    @property
    def gpus(self) -> float:
        if self.num_gpus is not None:
            return self.num_gpus
        return 0.0 if self.serve is None else 1.0


def _check(name: str, value: float, least: float, most: float | None) -> None:
    if value < least or (most is not None and value > most):
        raise InvalidInput(f"{name} is {value}", hint=f"it is at least {least}" + ("" if most is None else f" and at most {most}"))
