"""Words for people: commands as one types them, and durations."""

import re
import shlex
from collections.abc import Iterable

__all__ = ["duration", "join_words"]


def join_words(words: Iterable[str]) -> str:
    """A command that can be pasted into a shell: :func:`shlex.join`, but with double quotes where
    a word has single ones, as ``"('cats_train',)"``."""
    return " ".join(_quote(word) for word in words)


def duration(seconds: float) -> str:
    """In words: "40 s", "12 min" or "3 h 5 min"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _quote(word: str) -> str:
    if "'" in word and not re.search(r'["$`\\!]', word):
        return f'"{word}"'
    return shlex.quote(word)
