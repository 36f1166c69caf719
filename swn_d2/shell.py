"""Commands as one types them."""

import re
import shlex
from collections.abc import Iterable

__all__ = ["join_words"]


def join_words(words: Iterable[str]) -> str:
    """A command that can be pasted into a shell: :func:`shlex.join`, but with double quotes where
    a word has single ones, as ``"('cats_train',)"``."""
    return " ".join(_quote(word) for word in words)


def _quote(word: str) -> str:
    if "'" in word and not re.search(r'["$`\\!]', word):
        return f'"{word}"'
    return shlex.quote(word)
