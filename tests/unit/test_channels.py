"""
What gRPC calls an endpoint, and when it is to balance.
"""

import json
from typing import Any

import pytest

from nv_embed import channels
from nv_embed.errors import InvalidInput


def config(endpoint: str) -> Any:
    return json.loads(dict(channels.options(endpoint))["grpc.service_config"])


@pytest.mark.parametrize("endpoint", ["127.0.0.1:50051", "[::1]:50051", "localhost:50051", "unix:/run/a,b.sock", "sidecars.example:50051"])
def test_one_endpoint_is_called_as_it_is(endpoint: str) -> None:
    assert (channels.target(endpoint), channels.count(endpoint)) == (endpoint, 1)


@pytest.mark.parametrize(
    ("endpoint", "target"),
    [
        ("10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("10.0.0.1:1, 10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("[::1]:1,[fe80::2]:2", "ipv6:[::1]:1,[fe80::2]:2"),
    ],
)
def test_a_list_is_of_addresses_of_one_kind(endpoint: str, target: str) -> None:
    assert (channels.target(endpoint), channels.count(endpoint)) == (target, 2)


@pytest.mark.parametrize(
    "endpoint", ["10.0.0.1:1,[::1]:2", "a:1,b:2", "10.0.0.1:1,", "10.0.0.1:1,10.0.0.2", "10.0.0.1:1,unix:/a", "10.0.0.1:1,10.0.0.300:1"]
)
def test_a_list_of_anything_else_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidInput, match="a list of sidecars has only IPv4 addresses or only IPv6 addresses"):
        channels.target(endpoint)


def test_names_and_lists_are_balanced_by_health_and_full_ones_passed_over() -> None:
    for endpoint in ("10.0.0.1:1,10.0.0.2:2", "sidecars.example:50051"):
        said = config(endpoint)
        assert said["loadBalancingConfig"] == [{"round_robin": {}}]
        assert said["healthCheckConfig"] == {"serviceName": "nv_embed.v1.Embedder"}
        assert "RESOURCE_EXHAUSTED" in said["methodConfig"][0]["retryPolicy"]["retryableStatusCodes"]
    for endpoint in ("127.0.0.1:50051", "localhost:50051", "unix:/run/sidecar.sock", "[::1]:50051"):
        said = config(endpoint)
        assert set(said) == {"methodConfig"}
        assert said["methodConfig"][0]["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
