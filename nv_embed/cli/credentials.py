"""
Options by which a command and a sidecar know each other.

A token comes from a file, never from the command line, which everybody on the machine can read while the command runs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nv_embed.credentials import Credentials

TokenFileOption = Annotated[
    Path | None, typer.Option(envvar="NV_EMBED_TOKEN_FILE", help="A file with the token that the sidecar lets in.", show_default=False)
]
CaOption = Annotated[
    str | None,
    typer.Option(envvar="NV_EMBED_CA", help="PEM file of who has signed the sidecar's certificate, or system: use TLS.", show_default=False),
]
CertificateOption = Annotated[
    str | None, typer.Option(envvar="NV_EMBED_CERTIFICATE", help="PEM file with a certificate for the sidecar to see.", show_default=False)
]
KeyOption = Annotated[str | None, typer.Option(envvar="NV_EMBED_KEY", help="PEM file with its key.", show_default=False)]
TokenWithoutTlsOption = Annotated[
    bool, typer.Option("--token-without-tls", envvar="NV_EMBED_TOKEN_WITHOUT_TLS", help="Send the token over a private network without TLS.")
]


def credentials(token_file: Path | None, ca: str | None, certificate: str | None, key: str | None, token_without_tls: bool) -> "Credentials":
    """What the options say.

    Raises:
        InvalidInput: the token's file cannot be read.
    """
    from nv_embed.credentials import Credentials, read_token

    token = None if token_file is None else read_token(token_file)
    return Credentials(token=token, ca=ca, certificate=certificate, key=key, token_without_tls=token_without_tls)
