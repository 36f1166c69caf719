"""One clear error for a setting that is out of its range."""

from collections.abc import Sequence

from ..errors import UserError

__all__ = ["check", "check_choice", "check_columns", "check_masks"]


def check(key: str, value, is_valid: bool, rule: str) -> None:
    """Raise a UserError that ``key`` must be ``rule`` unless ``is_valid``."""
    if not is_valid:
        raise UserError(f"{key} is {value}, but it must be {rule}.")


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Raise a UserError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{key} has {value!r}, but it must be one of: {', '.join(choices)}.")


def check_columns(weighter: str, built_for: int, box_loss_dim: int) -> None:
    """Raise a UserError if a weighter was built for other columns of the box loss than the
    detector's has."""
    if built_for != box_loss_dim:
        raise UserError(
            f"the {weighter} was built for {built_for} columns of the box loss, but the detector's "
            f"has {box_loss_dim}; build it with box_loss_dim={box_loss_dim}."
        )


def check_masks(weighter: str, built_for: bool, has_mask: bool) -> None:
    """Raise a UserError if a weighter was built for a mask loss that the detector has not got, or
    without the one that it has."""
    if built_for != has_mask:
        raise UserError(
            f"the {weighter} was built with has_mask={built_for}, but the detector has "
            f"{'a' if has_mask else 'no'} mask loss; build it with has_mask={has_mask}."
        )
