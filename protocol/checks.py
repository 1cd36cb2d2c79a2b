"""Checks of single settings, whose complaints name the key as a person writes it.

Trust: public on both sides.
"""

from __future__ import annotations

from protocol.errors import ConfigurationError


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise unless low <= value <= high.

    Raises:
        ConfigurationError: Names the key, the value and the range.
    """
    if not low <= value <= high:  # neither does NaN; and any integer can be compared, however large
        raise ConfigurationError(f"{name} = {value} is outside {low}..{high}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise unless value is one of the choices.

    Raises:
        ConfigurationError: Names the key, the value and the choices.
    """
    if value not in choices:
        raise ConfigurationError(f"{name} = {value!r} is not one of {', '.join(choices)}")


def keep_floats(terms: object, *names: str) -> None:
    """Store whole numbers of these attributes as floats, so that equal terms have one encoding."""
    for name in names:
        object.__setattr__(terms, name, float(getattr(terms, name)))
