"""How whoever waits for an audit learns how far it is."""

from collections.abc import Callable, Iterable, Sequence

__all__ = ["Progress", "silent"]

#: Is given what is gone through, and what for, in words; gives the same things.
Progress = Callable[[Sequence, str], Iterable]


def silent(items: Sequence, what: str) -> Iterable:
    """Nobody waits."""
    return items
