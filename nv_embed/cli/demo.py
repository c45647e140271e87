"""
`nv-embed demo`: from nothing to a search by meaning.
"""


def demo() -> None:
    """Load the documentation of Python's standard library and search it by meaning."""
