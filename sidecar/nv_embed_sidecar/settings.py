"""
What an operator can choose, read once: the command line first, then the environment (`NV_EMBED_SIDECAR_LISTEN` and so on), then the defaults here.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from nv_embed.addresses import is_local
from nv_embed.limits import MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES, MAX_REQUEST_TEXTS, MAX_TEXT_BYTES

DEFAULT_LISTEN = "127.0.0.1:50051"
OVERRIDES = ("query_prompt", "passage_prompt", "max_tokens", "pooling", "bidirectional")
"""Settings that are said of one model."""


CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """Cores that this process may use, which in a container can be fewer than the machine has."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(min(allowed, -(-int(quota) // int(period))), 1)
    except (OSError, ValueError):  # there is none, or it is "max"
        return allowed


class Settings(BaseSettings):
    """Everything the sidecar is told.

    Attributes:
        models: names, directories or hub ids; the first is the default model.
        listen: addresses, `host:port` (port 0: any free one) or `unix:/path`.
        http: addresses of NVIDIA's and OpenAI's API over HTTP, as for `listen`; none unless given.
        ui: whether the page for people, `/ui`, is served there too.
        ui_database_url: the database that it shows, and searches; none unless given.
        dims: widths allowed beyond those a model was trained for.
        query_prompt, passage_prompt, max_tokens, pooling: of the model, instead of what its files or the registry say.
        bidirectional: that the model, by its files a causal one, was trained with bidirectional attention.
        batch_tokens: tokens of one batch; None: by the device.
        max_queue_texts, max_queue_tokens: what may wait, per priority, before further requests are refused.
        threads: cores for the arithmetic.
        rpc_threads: calls answered at a time.
        drain_s: how long calls under way may take to finish after SIGTERM.
        tokens: a file of tokens (`nv_embed/tokens.py`), one of which a caller must show.
        tls_cert, tls_key: PEM files of what TCP addresses are encrypted with.
        tls_client_ca: a PEM file of the authority that signs the certificates that clients must then show.
        ready_file: where to write pid, addresses, models and drain_s once the sidecar serves.
        log_format: `text`, or `json`, an object a line.
        hang_s: how long a batch may take before the device is taken to hang; at least, for more is allowed to batches that should take long.
        otlp: where spans go, http://host:port or https://host:port of a collector; by OpenTelemetry's own environment unless given.
        fake_delay_s: how long the fake engine takes for a batch.
        fake_fault: a file that, while it exists, names the fault that the fake engine rehearses.
    """

    model_config = SettingsConfigDict(env_prefix="NV_EMBED_SIDECAR_", frozen=True, extra="forbid")

    models: Annotated[tuple[str, ...], NoDecode] = Field(("auto",), min_length=1)
    listen: Annotated[tuple[str, ...], NoDecode] = Field((DEFAULT_LISTEN,), min_length=1)
    http: Annotated[tuple[str, ...], NoDecode] = ()
    ui: bool = False
    ui_database_url: SecretStr | None = None
    dims: Annotated[tuple[int, ...], NoDecode] = ()
    query_prompt: str | None = None
    passage_prompt: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    pooling: Literal["mean", "cls"] | None = None
    bidirectional: bool = False
    device: Literal["cpu", "cuda", "auto"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "int8", "fp8"] = "auto"
    threads: int = Field(default_factory=cores, ge=1)
    batch_tokens: int | None = Field(None, ge=1)
    max_queue_texts: int = Field(16_384, ge=1)
    max_queue_tokens: int = Field(4_000_000, ge=1)
    max_request_texts: int = Field(MAX_REQUEST_TEXTS, ge=1)
    # More is not received, by either door.
    max_request_bytes: int = Field(MAX_REQUEST_BYTES, ge=1, le=MAX_MESSAGE_BYTES)
    max_text_bytes: int = Field(MAX_TEXT_BYTES, ge=1, le=MAX_MESSAGE_BYTES)
    rpc_threads: int = Field(256, ge=8)
    drain_s: float = Field(10.0, ge=0)
    tokens: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    ready_file: Path | None = None
    log_format: Literal["text", "json"] = "text"
    hang_s: float = Field(60.0, gt=0)
    otlp: str | None = None
    fake_delay_s: float = Field(0.0, ge=0)
    fake_fault: Path | None = None

    @field_validator("models", "listen", "http", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """The environment has one text for a list; the command line repeats the option."""
        return _parts(value) if isinstance(value, str) else value

    @field_validator("dims", mode="before")
    @classmethod
    def _split_each(cls, value: object) -> object:
        if isinstance(value, str):
            return _parts(value)
        return [part for item in value for part in (_parts(item) if isinstance(item, str) else [item])] if isinstance(value, list) else value

    @field_validator("dims")
    @classmethod
    def _positive(cls, dims: tuple[int, ...]) -> tuple[int, ...]:
        if any(dim < 1 for dim in dims):
            raise ValueError("dimensions are at least 1")
        return tuple(sorted(set(dims), reverse=True))

    @model_validator(mode="after")
    def _one_model(self) -> "Settings":
        """What is said of a model must leave no doubt of which."""
        said = [name for name in OVERRIDES if getattr(self, name) not in (None, False)]
        if said and len(self.models) > 1:
            raise ValueError(f"{option(said[0])} is said of one model, and there are {len(self.models)}; serve this one with a sidecar of its own")
        return self

    @model_validator(mode="after")
    def _whole_certificate(self) -> "Settings":
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key go together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("--tls-client-ca needs --tls-cert and --tls-key")
        return self

    @model_validator(mode="after")
    def _known_readers(self) -> "Settings":
        """Rows of a database are shown to nobody who need not say who he is, but on the machine itself."""
        if self.ui and not self.http:
            raise ValueError("--ui needs --http, an address to serve the page at")
        if self.ui_database_url is not None and not self.ui:
            raise ValueError("--ui-database-url needs --ui, the page that shows the database")
        is_open = self.tokens is None and self.tls_client_ca is None and not all(map(is_local, self.http))
        if self.ui_database_url is not None and is_open:
            raise ValueError(
                "--ui-database-url would show rows to anybody on the network: give --tokens or --tls-client-ca, or --http 127.0.0.1 and a port"
            )
        return self


def option(name: str) -> str:
    """A setting as the command line calls it."""
    return "--" + name.replace("_", "-")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
