"""
The job: a re-embedding whose rows a Ray cluster embeds.

What Ray Data deals out are turns, not rows. A turn says nothing of which range it will take; the database says that when the turn begins
(`ranges.py`). So Ray may give a turn twice, or lose it with a node, and no row is embedded twice or forgotten for it: the database is asked how far
things are, and as long as rows wait there are more turns.

In:  what a table is to become, and settings      Out: the re-embedding's status, filled
"""

import logging
import math
import os
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from nv_embed import reembed as reembedding
from nv_embed.errors import InvalidInput
from nv_embed.jobs import connect
from nv_embed.ray.actor import Filler
from nv_embed.ray.ranges import APPLICATION, open_queue
from nv_embed.ray.settings import Settings
from nv_embed.reembed import Status, Wanted

log = logging.getLogger(__name__)

MOST_BLOCKS = 2_000
"""Of turns: Ray keeps account of each."""

SPARE_TURNS = 20
"""For each actor: some are lost where a node dies, until Ray has noticed, and a new round starts its actors anew. One that finds nothing to do costs
two queries."""

IDLE_ROUNDS = 3
"""After so many without a row, whatever is wrong does not mend itself."""


class Failed(Exception):
    """The job has ended before its table was filled. What is done stands, and a job that is started again goes on from there."""


def reembed(wanted: Wanted, settings: Settings) -> Status:
    """Begin a re-embedding, or go on with the one that is under way, and have a Ray cluster fill it.

    It may be interrupted or killed anywhere, and called again. Ray is what the caller has connected to, or else what RAY_ADDRESS names, or a cluster
    of this machine. Building indexes and cutting over are left to `nv-embed reembed`, or to `nv_embed.reembed.drive`.

    Raises:
        InvalidInput: another re-embedding of the table is under way, or it has been cut over.
        nv_embed.reembed.Ended: somebody cancelled it meanwhile, or rolled it back.
        Failed: an actor met what it cannot go on with, or no actor gets anything done.
        psycopg.Error
    """
    with connect(settings.database_url, application_name=APPLICATION) as connection:
        id = _find_or_begin(connection, wanted)
        try:
            _fill(connection, settings, id)
        except Failed:
            # What an actor said of a generation that is gone is not what is wrong.
            reembedding.check_goes_on(reembedding.status(connection, id))
            raise
        end = reembedding.status(connection, id)
        reembedding.check_goes_on(end)
        return end


def _fill(connection: reembedding.Connection, settings: Settings, id: int) -> None:
    idle = 0
    while reembedding.advance(connection, id) == "backfilling":
        generation = _counted(connection, settings, id)
        embedded, failed = _round(settings, id, generation, _turns(reembedding.status(connection, id), settings))
        idle = 0 if embedded + failed else idle + 1
        if idle == IDLE_ROUNDS:
            raise Failed("no actor gets anything done: see Ray's logs, and nv_embed.reembedding_status for what rows wait")


def _find_or_begin(connection: reembedding.Connection, wanted: Wanted) -> int:
    found = reembedding.find_open(connection, wanted.relation, wanted.target)
    if found is None:
        return reembedding.begin(connection, wanted)
    differs = reembedding.differences(connection, found, wanted)
    if differs:
        raise InvalidInput(
            f"re-embedding {found.id} of {found.relation} is under way, to another {', '.join(differs)}",
            hint=f"nv-embed cancel {found.relation} ends it",
        )
    if found.state in ("live", "rolled_back"):
        raise InvalidInput(f"re-embedding {found.id} of {found.relation} is {found.state}", hint=f"nv-embed finish {found.relation} ends it")
    reembedding.alter(connection, found.id, wanted)
    return found.id


def _counted(connection: reembedding.Connection, settings: Settings, id: int) -> int:
    """The generation to fill. Its rows are counted first, so that it is known how many turns that takes."""
    row = connection.execute("SELECT to_generation FROM nv_embed.reembedding WHERE id = %s", [id]).fetchone()
    assert row is not None
    if reembedding.status(connection, id).rows is None:
        queue = open_queue(settings.database_url)
        with queue.connection:
            queue.backfill_step(row[0])
    return int(row[0])


def _turns(status: Status, settings: Settings) -> int:
    """One for each range that is left, and some to spare."""
    left = max((status.rows or 0) - (status.embedded or 0), 0)
    return math.ceil(left / settings.range_rows) + settings.actors * SPARE_TURNS


def _round(settings: Settings, id: int, generation: int, turns: int) -> tuple[int, int]:
    """So many turns. Returns how many rows were embedded and how many failed, as far as somebody lived to tell."""
    embedded = failed = 0
    try:
        for answer in _answers(settings, id, generation, turns).iter_rows():
            if answer["error"]:
                raise Failed(answer["error"])
            embedded, failed = embedded + int(answer["embedded"]), failed + int(answer["failed"])
    except RayError as error:
        log.warning("a round of turns has ended early: %s", str(error).partition("\n")[0])
    return embedded, failed


def _answers(settings: Settings, id: int, generation: int, turns: int) -> Any:
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init()
    # The caller's own objects: to read them takes no task, and no node's death loses them.
    answers = ray.data.from_items([{"turn": turn} for turn in range(turns)], override_num_blocks=min(turns, MOST_BLOCKS)).map_batches(
        Filler,
        batch_size=1,
        fn_constructor_args=(settings, id, generation),
        compute=ray.data.ActorPoolStrategy(size=settings.actors, max_tasks_in_flight_per_actor=1),
        num_gpus=settings.gpus,
        num_cpus=settings.num_cpus,
        # An actor whose node died comes back where there is room. Its turn does not: nobody waits for room that may never be.
        max_restarts=-1,
        max_task_retries=0,
    )
    answers.context.max_errored_blocks = -1
    return answers
