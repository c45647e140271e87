"""
`nv-embed up` and `nv-embed down`: a private Postgres and a sidecar for development.

`up` makes true what is not: data, server, sidecar, database, extension, endpoint. What already is stays as it is, so it may be called at any time,
also after a crash or while another `up` is at work.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nv_embed import home

if TYPE_CHECKING:
    from nv_embed.cli.private import Servers
    from nv_embed.sidecar_process import Serving

DEFAULT_MODEL = "auto"


def up(
    model: Annotated[
        str | None,
        typer.Option(help="What the sidecar serves: minilm, fake, auto, a folder or a hub id.  [default: what runs, else auto]", show_default=False),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- OPTION",
            help="What else the sidecar is told, as `nv-embed serve` takes it: -- --dims 256 --query-prompt 'query: '. The environment variables "
            "NV_EMBED_SIDECAR_... count too, for a sidecar that is started now.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Start a private Postgres and a sidecar."""
    check_options(options or [])
    from nv_embed.cli.private import alone, servers
    from nv_embed.cli.screen import note

    where, reason = home.create(), home.why()
    if reason is not None:
        note(f"The private servers live in {where}: {reason}.")
    with alone(where):
        private = servers()
        private.shorten_logs()
        start_postgres(private)
        serving = start_sidecar(private, model, options or [])
        install_extension(private, serving)
    _say_how_to_go_on()


def down(
    delete_data: Annotated[bool, typer.Option("--delete-data", help="Also remove the databases.")] = False,
) -> None:
    """Stop the private Postgres and the sidecar."""
    from nv_embed.cli.private import alone, servers
    from nv_embed.cli.screen import plain, step

    private = servers()
    if not private.home.is_dir():
        plain("Nothing runs.")
        return
    with alone(private.home):
        stopped = []
        if private.cluster.is_running():
            with step("Stopping PostgreSQL"):
                private.cluster.stop()
            stopped.append("PostgreSQL")
        if private.sidecar.processes():
            with step("Stopping the sidecar"):
                private.sidecar.stop()
            stopped.append("the sidecar")
        plain(f"Stopped {' and '.join(stopped)}." if stopped else "Nothing runs.")
        if delete_data:
            private.cluster.delete()
            for name in ("state.json", "sidecar.json"):
                (private.home / name).unlink(missing_ok=True)
            plain(f"Deleted {private.cluster.data_dir}.")


def start_postgres(private: "Servers") -> None:
    from nv_embed.cli.screen import plain, step

    cluster = private.cluster
    postmaster = cluster.running()
    if postmaster is not None and postmaster.ready:
        plain(f"PostgreSQL already runs on port {postmaster.port}, process {postmaster.pid}.")
        return
    if not cluster.exists():
        with step("Making a PostgreSQL data directory") as say:
            cluster.create()
            say(f"Data directory made: {cluster.data_dir}.")
    with step("Starting PostgreSQL") as say:
        postmaster = cluster.start(private.remembered_port())
        private.remember_port(postmaster.port)
        say(f"PostgreSQL runs on port {postmaster.port}, process {postmaster.pid}.")


def check_options(options: list[str]) -> None:
    """Refuse what cannot be the sidecar's options, and the one that is ours to give."""
    if options and not options[0].startswith("-"):
        raise typer.BadParameter(f"'{options[0]}' is no option; the sidecar's stand behind --")
    if any(option.partition("=")[0] == "--ready-file" for option in options):
        raise typer.BadParameter("--ready-file is what `nv-embed up` finds the sidecar by, and gives itself")


def start_sidecar(private: "Servers", model: str | None, options: list[str]) -> "Serving":
    """The sidecar that serves what was asked for; one that serves something else or was told something else, or is not well, is replaced.

    Where neither a model nor options are given, those of the sidecar that ran remain.
    """
    from nv_embed.cli.private import health
    from nv_embed.cli.screen import plain, step

    if model is not None and Path(model).is_dir():
        model = str(Path(model).resolve())
    serving = private.sidecar.serving()
    if serving is not None and _is_as_wanted(serving, model, options) and health(serving.own_address) == "SERVING":
        plain(f"The sidecar already serves {serving.models[0]} on {serving.tcp_address}, process {serving.pid}.")
    else:
        if private.sidecar.processes():
            with step("Stopping the sidecar that runs") as say:
                private.sidecar.stop()
                say("The sidecar that ran is stopped.")
        if serving is not None and model is None:
            model, options = serving.asked_for, options or list(serving.options)
        model = model or DEFAULT_MODEL
        unix_socket = private.sidecar_socket
        with step(f"Starting a sidecar with model {model}") as say:
            serving = private.sidecar.start(model, ["127.0.0.1:0", *([f"unix:{unix_socket}"] if unix_socket else [])], options)
            say(f"The sidecar serves {serving.models[0]} on {serving.tcp_address}, process {serving.pid}.")
    if private.sidecar_socket is not None and private.sidecar_socket.exists():
        # To connect to a socket is to write to it. Its folder keeps everybody else out.
        home.give_to_postgres(private.sidecar_socket)
    return serving


def _is_as_wanted(serving: "Serving", model: str | None, options: list[str]) -> bool:
    return (model is None or serving.serves(model)) and (not options or tuple(options) == serving.options)


def install_extension(private: "Servers", serving: "Serving") -> None:
    from nv_embed.cli.private import DATABASE
    from nv_embed.cli.screen import plain
    from nv_embed.install import ExtensionMissing, install

    cluster = private.cluster
    cluster.create_database(DATABASE)
    with cluster.connect(DATABASE) as connection:
        try:
            installed = install(connection, serving.own_address)
        except ExtensionMissing as missing:
            raise home.NotSetUp(f"{missing} in {home.pgroot()}") from None
    change = {installed.version: "", None: ", newly made"}.get(installed.before, f", updated from {installed.before}")
    plain(f"Database {DATABASE} has the extension nv_embed {installed.version}{change}.")


def _say_how_to_go_on() -> None:
    from nv_embed.cli.screen import plain

    program = home.program_name()
    plain()
    plain("Go on with:")
    plain(f'  psql "$({program} dsn)" -c "SELECT nv_embed(\'hello\')"')
    plain(f"  {program} status")
    plain(f"  {program} down")
