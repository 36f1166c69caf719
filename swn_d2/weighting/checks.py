"""One clear error for a setting that is out of its range."""

from collections.abc import Sequence

from ..errors import UserError

__all__ = ["check", "check_choice"]


def check(key: str, value, is_valid: bool, rule: str) -> None:
    """Raise a UserError that ``key`` must be ``rule`` unless ``is_valid``."""
    if not is_valid:
        raise UserError(f"{key} is {value}, but it must be {rule}.")


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Raise a UserError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{key} has {value!r}, but it must be one of: {', '.join(choices)}.")
