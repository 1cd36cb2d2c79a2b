"""Text from outside, as a terminal may show it.

Trust: runs where people read; a file from outside could otherwise repaint what they decide by.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text with its control and direction characters written out, such as backslash u001b."""
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)
