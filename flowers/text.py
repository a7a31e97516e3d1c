"""Text from people's data, such as file names and class names, made safe for where it is shown."""

from __future__ import annotations


def plain(text: str) -> str:
    """Text for a terminal or a log line: what would steer it, or turn its direction, is shown as U+FFFD.

    Control characters, escape sequences, line ends, marks of direction and halves of characters are of this kind.
    """
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
