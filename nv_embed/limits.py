"""
What fits into one request.

The client cuts its pages by these numbers and the sidecar refuses what exceeds them, so that both say the same about the same text.
"""

MAX_TEXT_BYTES = 4 * 1024 * 1024
"""One text, in UTF-8."""

MAX_REQUEST_TEXTS = 2048
"""Texts in one `Embed` or `Tokenize` request."""

MAX_REQUEST_BYTES = 8 * 1024 * 1024
"""All texts of one request together."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""What gRPC accepts at all; above `MAX_REQUEST_BYTES`, so that our own message is the one that people read."""
