"""
Channels: one sidecar or many.

A call goes to one sidecar. Where an endpoint stands for several, a name with many addresses or a list, gRPC deals the calls out in turn among those
whose health service says that they serve, and one that dies or drains is left out until it is back. A call that found its sidecar gone is tried
again, at another one where there is one: to embed twice harms nobody.

In:  an endpoint      Out: what gRPC calls it, and its options
"""

import ipaddress
import json
import re
from typing import Any

from nv_embed.errors import InvalidInput

Options = tuple[tuple[str, Any], ...]

SERVICE = "nv_embed.v1.Embedder"

PART = re.compile(r"(?P<host>\[[^\]]+\]|[^:]+):\d{1,5}")

KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 20_000, 10_000
"""While a call waits: how often to see whether its sidecar's machine is still there, and how long that may take."""

RESOLVE_MS = 5_000
"""How soon a name may be looked up again, after one of its sidecars went away."""

BASIC: Options = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_MS),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
)

RETRY: dict[str, Any] = {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "0.25s", "backoffMultiplier": 2}


def target(endpoint: str) -> str:
    """What gRPC calls an endpoint: `host:port`, `unix:/path`, or `address:port` several times with commas between.

    Raises:
        InvalidInput: a list has something other than addresses of one kind.
    """
    parts = endpoint.split(",")
    if len(parts) == 1 or endpoint.startswith("unix:/"):
        return endpoint
    versions = {_version(part.strip()) for part in parts}
    if len(versions) != 1 or None in versions:
        raise InvalidInput(
            "a list of sidecars has only IPv4 addresses or only IPv6 addresses, each with its port",
            hint="give 10.0.0.1:50051,10.0.0.2:50051, or a name that resolves to all of them",
        )
    return f"ipv{versions.pop()}:{','.join(part.strip() for part in parts)}"


def options(endpoint: str) -> Options:
    """How a channel to an endpoint behaves."""
    many = may_be_many(endpoint)
    # One that is full may stand beside one that is not.
    codes = ["UNAVAILABLE", "RESOURCE_EXHAUSTED"] if many else ["UNAVAILABLE"]
    config: dict[str, Any] = {"methodConfig": [{"name": [{"service": SERVICE}], "retryPolicy": {**RETRY, "retryableStatusCodes": codes}}]}
    if many:
        config |= {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": SERVICE}}
    return (*BASIC, ("grpc.service_config", json.dumps(config)))


def may_be_many(endpoint: str) -> bool:
    """Whether an endpoint can stand for several sidecars: a list, or a name, which may have several addresses."""
    return not endpoint.startswith("unix:") and ("," in endpoint or _version(endpoint) is None) and not endpoint.startswith("localhost:")


def count(endpoint: str) -> int:
    """Of how many sidecars is known."""
    return 1 if endpoint.startswith("unix:") else endpoint.count(",") + 1


def _version(part: str) -> int | None:
    """4 or 6, of an IP address with its port; None for anything else."""
    found = PART.fullmatch(part)
    try:
        return None if found is None else ipaddress.ip_address(found["host"].strip("[]")).version
    except ValueError:
        return None
