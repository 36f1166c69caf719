"""Pickles that do something when they are loaded."""

from collections.abc import Callable
from typing import Any


class Call:
    """Is pickled as a call of a function, and as the state that its result is given."""

    def __init__(self, function: Callable, *arguments: Any, state: Any = None):
        self.call = function, arguments, state

    def __reduce__(self):
        return self.call
