"""
Addresses: which of them stay on this machine.

The client refuses to send a token further without TLS, and the sidecar warns where it would come in; both go by this.
"""

import re

LOCAL = re.compile(r"unix:.*|(localhost|127(\.\d{1,3}){3}|\[::1\]|::1):\d+")


def is_local(address: str) -> bool:
    """Whether `host:port` or `unix:/path`, or a list of them, is on this machine; a name other than `localhost` may be anybody's."""
    parts = [address] if address.startswith("unix:") else address.split(",")
    return all(LOCAL.fullmatch(part.strip()) for part in parts)
