"""Text made safe for where it is shown: file names and class names of people's data, addresses with secrets."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    """Text for a terminal or a log line: what would steer it, or turn its direction, is shown as U+FFFD.

    Control characters, escape sequences, line ends, marks of direction and halves of characters are of this kind.
    """
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def several(number: float, noun: str, plural: str = "") -> str:
    """How many there are, as "1 photo" and "1,200 photos"; `plural` where that is not made with an s."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun if number == 1 else plural or f'{noun}s'}"


# What a spreadsheet takes for the start of a formula (OWASP, "CSV Injection").
_FORMULA = "[=+\\-@\t\r\n＝＋－＠]"


def spreadsheet_safe(text: str) -> str:
    """Text for a cell of a CSV file: before what a spreadsheet would take for a formula stands a single quote."""
    return f"'{text}" if re.match(f"'*{_FORMULA}", text) else text


def spreadsheet_text(cell: str) -> str:
    """The text that `spreadsheet_safe` was given."""
    return cell[1:] if re.match(f"'+{_FORMULA}", cell) else cell


# Parts of an address that let whoever reads it in.
_USER = re.compile(r"(?<=://)[^/?#@]*@")
_SECRET_OPTION = re.compile(
    r"[?&;]([^=&;]*(?:secret|password|passwd|token|signature|credential|access_?key|account_?key|api_?key)[^=&;]*|sig|sas)"
    r"=[^&;]",
    re.IGNORECASE,
)


def secret_of(uri: str) -> str | None:
    """What of an address is secret, in words; None if nothing is."""
    if "://" not in uri:
        return None
    if _USER.search(uri):
        return "a user or a password"
    found = _SECRET_OPTION.search(uri)
    return f"the option {found[1]!r}" if found else None


def without_secrets(uri: str) -> str:
    """The address without its user and its options."""
    return _USER.sub("", uri).partition("?")[0] if "://" in uri else uri
