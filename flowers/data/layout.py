"""The layout of a folder of photos: which folder above a photo names its class, and which its side of a split on disk.

    flowers/roses/1.jpg                 classes
    flowers/train/roses/1.jpg           sides above classes, as most public sets come
    flowers/roses/train/1.jpg           classes above sides

Only names are looked at. What they leave open is asked, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from flowers.errors import InputError, few
from flowers.text import several

Parts = tuple[str, ...]

UNLABELLED: Final = "unlabelled"
# Words by which people call the sides of a split. A name may hold other words too, see `_PLAIN`.
_WORDS: Final = {
    "train": ("train", "training", "trainings", "trn", "tr"),
    "validation": ("validation", "validating", "val", "valid", "vali", "dev", "development"),
    "test": ("test", "testing", "tst", "holdout", "heldout"),
    "evaluation": ("eval", "evaluation"),  # test, or validation where there is a test beside it
    UNLABELLED: ("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "inference"),
}
_SIDE_OF_WORD: Final = {word: side for side, words in _WORDS.items() for word in words}
# Words that say nothing about the side.
_PLAIN: Final = frozenset(
    re.findall(
        r"\w+",
        "set sets data dataset datasets image images img imgs photo photos picture pictures pic pics split splits "
        "folder folders dir subset sample samples seg class classes classified labelled labeled jpg jpeg png files "
        "final full all the my new raw public private",
    )
)
_LONGEST_FIRST: Final = sorted(_SIDE_OF_WORD, key=len, reverse=True)


@dataclass(frozen=True)
class Layout:
    """How the folders of a source are meant.

    Attributes:
        root: folders above all photos that say nothing: the name of a set that was unpacked into a folder.
        sides: from the name of a folder to train, validation, test or unlabelled; empty if sides are not on disk.
        inner: by side's folder, further folders above the classes that say nothing, such as the side's name again.
        classes_above: whether the class is the folder above the side.
        said: a line on what was understood; None where the first folder is the class.
    """

    root: Parts = ()
    sides: Mapping[str, str] = field(default_factory=dict)
    inner: Mapping[str, Parts] = field(default_factory=dict)
    classes_above: bool = False
    said: str | None = None

    def place(self, parts: Parts) -> tuple[str | None, str | None, int]:
        """Class and side of a file, None where its folders do not say, and the number of folders down to its class.

        Args:
            parts: its path below the source, the file's name last.
        """
        depth = len(self.root)
        if parts[:depth] != self.root or len(parts) < depth + 2:
            return None, None, depth
        first = parts[depth]
        if not self.sides:
            return first, None, depth + 1
        if self.classes_above:
            side = self.sides.get(parts[depth + 1]) if len(parts) > depth + 2 else None
            return (None if side == UNLABELLED else first), side, depth + 1
        side = self.sides.get(first)
        if side is None or side == UNLABELLED:
            return None, None, depth + 1
        inner = self.inner.get(first, ())
        below = depth + 1 + len(inner)
        if parts[depth + 1 : below] != inner or len(parts) < below + 2:
            return None, side, below
        return parts[below], side, below + 1


def understand(paths: Iterable[Parts], wanted: str = "auto", where: str = "--data") -> Layout:
    """Finds out how folders are meant.

    Args:
        paths: of what may be photos, below the source, the file's name last.
        wanted: as the option ``--layout``: auto, classes (the first folder is the class) or split.
        where: the source, for messages.

    Raises:
        InputError: only some of the folders are named like sides of a split, so both readings are possible; or they are
            all, but hold no class folders; or `wanted` is split and none is.
    """
    known = sorted(set(paths))
    if wanted == "classes":
        return Layout()
    root = _wrapper(known)
    below = [parts[len(root) :] for parts in known if parts[: len(root)] == root]
    folders = sorted({parts[0] for parts in below if len(parts) > 1})
    sides = _sides(folders)
    split = bool(folders) and all(sides.values()) and "train" in sides.values()
    if split:
        found = _sides_above(below, sides, root)
        if found or wanted == "split":
            return found or _refuse_sides(folders, where)
    if wanted == "split":
        if "train" not in sides.values():
            found = _classes_above(below, root)
            return found or _refuse_sides(folders, where)
        named = {folder: side or UNLABELLED for folder, side in sides.items()}
        return _sides_above(below, named, root) or _refuse_sides(folders, where)
    if doubtful := folders if split else [folder for folder in folders if _is_side_exactly(folder)]:
        raise InputError(_question(folders, doubtful, where))
    if found := _classes_above(below, root):
        return found
    said = f"the classes are the folders of {'/'.join(root)}/" if root else None
    return Layout(root=root, said=said)


def _sides(names: Sequence[str]) -> dict[str, str | None]:
    """The side that each name stands for, None for a name that is none; words that all names have say nothing."""
    words = {name: _tokens(name) for name in names}
    common = set.intersection(*map(set, words.values())) - set(_SIDE_OF_WORD) if len(words) > 1 else set()
    found = {name: _side(words[name], common) for name in names}
    spare = "validation" if "test" in found.values() else "test"
    return {name: spare if side == "evaluation" else side for name, side in found.items()}


def side_of(text: str) -> str | None:
    """The side that a word in a manifest stands for: train, validation, test or unlabelled; None if it is none."""
    return _sides([text])[text]


def _side(words: Sequence[str], common: Iterable[str] = ()) -> str | None:
    """The one side that `words` name, beside words that say nothing."""
    said = {_SIDE_OF_WORD.get(word) for word in words if word not in _PLAIN and word not in common}
    return said.pop() if len(said) == 1 else None


def _tokens(name: str) -> list[str]:
    """Words of a name in lower case: "TrainSet_2017" and "trainset" are train and set."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [part for word in re.findall(r"[^\W\d_]+", spaced.casefold()) for part in _cut(word)]


def _cut(word: str) -> list[str]:
    """Cuts "trainset" and "imgtrain" in two."""
    if word not in _SIDE_OF_WORD and word not in _PLAIN:
        for side in _LONGEST_FIRST:
            if word.startswith(side) and word[len(side) :] in _PLAIN:
                return [side, word[len(side) :]]
            if word.endswith(side) and word[: -len(side)] in _PLAIN:
                return [word[: -len(side)], side]
    return [word]


def _is_side_exactly(name: str) -> bool:
    side = _SIDE_OF_WORD.get(name.casefold().strip())
    return side in ("train", "validation", "test")


def _wrapper(paths: Sequence[Parts]) -> Parts:
    """Folders that all photos lie in, down to where there is a choice, or a side."""
    root: Parts = ()
    while True:
        depth = len(root)
        here = {parts[depth] if len(parts) > depth + 1 else "" for parts in paths}
        if len(here) != 1 or "" in here or any(len(parts) == depth + 2 for parts in paths):
            return root
        name = here.pop()
        if _side(_tokens(name)) is not None:
            return root
        root = (*root, name)


def _sides_above(below: Sequence[Parts], sides: Mapping[str, str | None], root: Parts) -> Layout | None:
    """The layout of sides above classes, or None if no class folder lies in a side that trains."""
    inner: dict[str, Parts] = {}
    classes: dict[str, set[str]] = {}
    for folder, side in sides.items():
        files = [parts[1:] for parts in below if parts[0] == folder]
        inner[folder] = _repeated(files, folder, side)
        depth = len(inner[folder])
        classes[folder] = {parts[depth] for parts in files if len(parts) > depth + 1}
    if not any(classes[folder] for folder, side in sides.items() if side == "train"):
        return None
    shown = ", ".join(
        _shown(folder, side, inner[folder])
        for folder, side in sorted(sides.items(), key=lambda item: _ORDER.index(item[1] or UNLABELLED))
    )
    count = len(set().union(*(classes[folder] for folder, side in sides.items() if side != UNLABELLED)))
    missing = [side for side in ("validation", "test") if side not in sides.values()]
    cut = (
        f"; {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} cut from train by --split" if missing else ""
    )
    place = f" of {'/'.join(root)}/" if root else ""
    said = f"a split on disk: {shown}{place} above {several(count, 'class', 'classes')}{cut}"
    return Layout(root, {name: side for name, side in sides.items() if side}, inner, said=said)


def _shown(name: str, side: str | None, inner: Parts = ()) -> str:
    """A folder, and the side that it is where its name is not that word."""
    return f"{name}/" if name.casefold() == side else f"{'/'.join((name, *inner))}/ ({side})"


_ORDER: Final = ("train", "validation", "test", UNLABELLED)


def _repeated(files: Sequence[Parts], folder: str, side: str | None) -> Parts:
    """Folders between a side and its classes: the side's name again, or one that says nothing, as "images"."""
    inner: Parts = ()
    while True:
        depth = len(inner)
        here = {parts[depth] for parts in files if len(parts) > depth + 1}
        deeper = any(len(parts) > depth + 2 for parts in files)
        if len(here) != 1 or not deeper:
            return inner
        name = here.pop()
        words = _tokens(name)
        again = name.casefold() == folder.casefold() or _side(words) == side
        if not again and not all(word in _PLAIN for word in words):
            return inner
        inner = (*inner, name)


def _classes_above(below: Sequence[Parts], root: Parts) -> Layout | None:
    """The layout of classes above sides: in each class nothing but sides, and one that trains."""
    folders: dict[str, set[str]] = {}
    for parts in below:
        if len(parts) > 1:
            folders.setdefault(parts[0], set()).add(parts[1] if len(parts) > 2 else "")
    names = sorted(set().union(*folders.values())) if folders else []
    if len(folders) < 2 or not names or "" in names:
        return None
    sides = _sides(names)
    if not all(sides.values()) or "train" not in sides.values() or len(set(sides.values())) < 2:
        return None
    shown = ", ".join(_shown(name, side) for name, side in sides.items())
    said = f"a split on disk: {shown} in each of {several(len(folders), 'class folder')}"
    return Layout(root, {name: side for name, side in sides.items() if side}, classes_above=True, said=said)


def _question(folders: Sequence[str], doubtful: Sequence[str], where: str) -> str:
    others = [folder for folder in folders if folder not in doubtful]
    if not others:
        text = f"the folders {few(doubtful, 3)} are named like the sides of a split, but hold no class folders"
        cure = "put the photos of each class into a folder of its own below them, or give a manifest"
    else:
        verb = "is" if len(doubtful) == 1 else "are"
        text = f"{few(doubtful, 3)} {verb} named like a side of a split, {few(others, 3)} not"
        cure = "say --layout split, if the classes lie below"
    return f"{where}: {text}; {cure}, or --layout classes, if each of these folders is a class"


def _refuse_sides(folders: Sequence[str], where: str) -> Layout:
    raise InputError(
        f"{where}: --layout split needs folders named like train, validation and test, with class folders below; found "
        f"{few(folders, 3) or 'no folders'}; rename them, or give a manifest with the column split"
    )
