"""
The command line: `python -m nv_embed_sidecar --model NAME --listen ADDR`.

Exit codes: 0 it served and was told to stop, 1 it failed (one line says why), 2 wrong usage.
"""

import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from nv_embed.errors import EmbedError
from nv_embed_sidecar import logs
from nv_embed_sidecar.settings import Settings, cores, option

log = logging.getLogger(__name__)

PROGRAM = "nv_embed_sidecar"
LOOK_S = 1.0
CORES_A_TOKENISER = 4
SWITCH_S = 0.0005

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def serve(
    model: Annotated[
        list[str] | None, typer.Option(help="Short name (minilm, fake, auto), directory or hub id. Repeatable; the first is the default.")
    ] = None,
    listen: Annotated[list[str] | None, typer.Option(help="host:port, host:0 for any free port, or unix:/path. Repeatable.")] = None,
    http: Annotated[
        list[str] | None, typer.Option(help="Where to serve NVIDIA's and OpenAI's API, /v1/embeddings, over HTTP; nowhere unless given. Repeatable.")
    ] = None,
    ui: Annotated[bool | None, typer.Option("--ui", help="Serve a page for people there too, at /ui.")] = None,
    ui_database_url: Annotated[
        str | None,
        typer.Option(help="The database that the page shows and searches, with this role's rights. Its password is better kept in the environment."),
    ] = None,
    dims: Annotated[list[str] | None, typer.Option(help="Widths to allow although no model was trained for them, such as 256,128.")] = None,
    query_prompt: Annotated[str | None, typer.Option(help="What the one model served gets in front of a query, instead of its own.")] = None,
    passage_prompt: Annotated[str | None, typer.Option(help="The same for a passage; '' for nothing.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest text of the one model served, prompt and special tokens included.")] = None,
    pooling: Annotated[str | None, typer.Option(help="How the one model served makes one vector of a text: mean or cls.")] = None,
    bidirectional: Annotated[
        bool | None, typer.Option("--bidirectional", help="The one model served, a Llama or Mistral, was trained with bidirectional attention.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16, int8 (CPU) or fp8 (GPU).")] = None,
    threads: Annotated[int | None, typer.Option(help="Cores for the arithmetic; all unless given.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens of one batch.")] = None,
    max_queue_texts: Annotated[int | None, typer.Option(help="Texts that may wait, per priority.")] = None,
    max_queue_tokens: Annotated[int | None, typer.Option(help="Tokens that may wait, per priority.")] = None,
    max_request_texts: Annotated[int | None, typer.Option(help="Texts of one request.")] = None,
    max_request_bytes: Annotated[int | None, typer.Option(help="Bytes of one request's texts together.")] = None,
    max_text_bytes: Annotated[int | None, typer.Option(help="Bytes of one text.")] = None,
    rpc_threads: Annotated[int | None, typer.Option(help="Calls answered at a time.")] = None,
    drain_s: Annotated[float | None, typer.Option(help="Seconds that calls under way may take to finish after SIGTERM.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="A file of tokens, one of which a caller must show; see nv-embed token.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate, with its chain, for TLS on every TCP address.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, without a passphrase.")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="Who signs the certificates that clients must then show.")] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Write pid, addresses, models and drain_s here as JSON once serving.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text, or json: an object a line on stderr.")] = None,
    hang_s: Annotated[float | None, typer.Option(help="Seconds that any batch may take before the device is taken to hang.")] = None,
    otlp: Annotated[str | None, typer.Option(help="Send spans by OTLP over gRPC to http://host:4317, or https:// for TLS.")] = None,
    fake_delay_s: Annotated[float | None, typer.Option(help="Seconds that the fake model takes for a batch.")] = None,
    fake_fault: Annotated[
        Path | None, typer.Option(help="A file that, while it exists, holds the fault that the fake model rehearses: error, oom or hang.")
    ] = None,
) -> None:
    """Hold embedding models and serve them over gRPC (nv_embed.v1) and HTTP (/v1/embeddings).

    Every option may come from the environment instead: NV_EMBED_SIDECAR_ and its name in capitals, as in NV_EMBED_SIDECAR_BATCH_TOKENS. For --model
    it is NV_EMBED_SIDECAR_MODELS, and lists are separated by commas.
    """
    given = {name: value for name, value in locals().items() if value is not None and value != []}
    if "model" in given:
        given["models"] = given.pop("model")
    logs.set_up()
    try:
        settings = _settings(given)
        logs.set_up(as_json=settings.log_format == "json")
        run(settings)
    except EmbedError as error:
        _fail(str(error), 1)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. A second signal, or one while the models are still being loaded, ends the process at once."""
    _on_signals(_exit)
    # On a shared machine, threads that spin while they wait for each other make short texts ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Lists of texts are tokenised by a pool of threads. One of all cores takes a quarter of its rate from an engine on the CPU; none at all, so that
    # each caller's thread tokenises, three quarters. A few cores are plenty: one alone makes some half a million tokens a second.
    os.environ.setdefault("RAYON_NUM_THREADS", str(max(cores() // CORES_A_TOKENISER, 1)))
    # The engine's threads ask for the interpreter between pieces of a batch, and otherwise wait up to 5 ms for one that parses or answers a call.
    sys.setswitchinterval(SWITCH_S)
    _raise_files()
    # gRPC and NumPy are imported behind the signal handlers and the check of the command line: both should answer at once.
    from nv_embed import tracing
    from nv_embed_sidecar import access, models, server

    server.check_addresses((*settings.listen, *settings.http))
    allowed = access.Access.of(settings)
    traced = tracing.opened("nv-embed-sidecar", settings.otlp)
    if settings.ready_file is not None:
        settings.ready_file.unlink(missing_ok=True)
    loaded = models.load(settings)
    # Not an Event: a handler that sets one while this thread looks at it would wait for itself.
    stop: SimpleQueue[None] = SimpleQueue()
    signals = count()
    serving = server.Server(loaded, settings, on_failure=lambda: stop.put(None), access=allowed, tracing=traced)
    serving.start()
    _on_signals(lambda number: _exit(number) if next(signals) else stop.put(None))
    print(server.announce(serving, loaded, settings.ready_file), flush=True)
    _wait(stop)
    log.info("stopping: calls under way have %g s to finish", settings.drain_s)
    serving.stop()
    traced.close()
    if serving.failure is not None:
        print(f"{PROGRAM}: {serving.failure} (start the sidecar again)", file=sys.stderr, flush=True)
        # A thread that is stuck in the device would hold up any other way out.
        os._exit(1)


def _settings(given: dict[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        _fail(f"{option(str(first['loc'][0]))}: {message}" if first["loc"] else message, 2)
        raise


def _raise_files() -> None:
    """Let this process open as many files as it may: a connection is one, and the usual 1,024 are fewer than are let in."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # the kernel's own bound has become a lower one
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _on_signals(handle: Callable[[int], None]) -> None:
    def handler(number: int, frame: FrameType | None) -> None:
        del frame
        handle(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def _wait(stop: "SimpleQueue[None]") -> None:
    while True:
        # A signal that another thread was given is handled when this one wakes.
        with suppress(Empty):
            return stop.get(timeout=LOOK_S)


def _exit(number: int) -> None:
    os._exit(128 + number)


def _fail(message: str, code: int) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    raise typer.Exit(code)


if __name__ == "__main__":
    app(prog_name=PROGRAM)
