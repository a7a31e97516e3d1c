"""Look-alike classes: two names that people take for one, as they differ in case, blanks or Unicode form only."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

_PAIRS = 5


def look_alikes(names: Sequence[str]) -> list[str]:
    """A warning for each set of names that look alike, with the code points in which they differ.

    Args:
        names: of classes, no two the same.
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_seen(name), []).append(name)
    return [
        f"the classes {' and '.join(map(_shown, group))} look alike, but are {len(group)} classes; if one is meant, "
        "give them one name"
        for group in alike.values()
        if len(group) > 1
    ]


def did_you_mean(strange: Iterable[str], names: Iterable[str]) -> str:
    """Which of `names` strange ones look like, as "did you mean 'tulips' by 'Tulips'?"; "" if none does."""
    known = {_seen(name): name for name in names}
    meant = {name: known[_seen(name)] for name in sorted(set(strange)) if _seen(name) in known}
    pairs = [f"{_shown(right)} by {_shown(name)}" for name, right in meant.items()]
    more = f" and so on for {len(pairs) - _PAIRS} more" if len(pairs) > _PAIRS else ""
    return f"did you mean {', '.join(pairs[:_PAIRS])}{more}?" if pairs else ""


def _seen(name: str) -> str:
    """What is left of a name without case, blanks, separators, invisible characters and Unicode form."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(letter for letter in folded if unicodedata.category(letter)[0] not in "ZC" and letter not in "_-")


def _shown(name: str) -> str:
    odd = [f"U+{ord(letter):04X}" for letter in name if not "!" <= letter <= "~"]
    return f"{name!r} ({' '.join(odd)})" if odd else repr(name)
