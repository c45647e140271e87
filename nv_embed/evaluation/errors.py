"""
What keeps an evaluation from being made.
"""


class EvaluationFailed(Exception):
    """The message is the one line that people read."""
