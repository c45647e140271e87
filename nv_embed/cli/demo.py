"""
`nv-embed demo`: from nothing to a search by meaning.
"""


def demo() -> None:
    """Search Python's documentation by meaning."""
