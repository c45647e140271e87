"""
Text embeddings where the data lives.

The library that Postgres, the worker, the command line and applications share. It knows the wire format, the client and the errors; it knows nothing
of torch, so a database backend can import it.
"""

__version__ = "0.2.0"
