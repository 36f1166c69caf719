"""What the checks of a data set find out about it."""

from typing import NamedTuple

__all__ = ["Checked"]


class Checked(NamedTuple):
    """A data set without mistakes.

    Attributes:
        classes: the names of the categories, in the order of their ids.
        lacks: what it has nothing of to train on, which is no mistake where another data set has
            it -> a sentence that says so.
    """

    classes: list[str]
    lacks: dict[str, str]
