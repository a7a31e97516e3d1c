"""Files that storage boxes, photo programs and operating systems leave beside photos: thumbnails, previews, trash."""

from __future__ import annotations

from typing import Final

# Folders that storage boxes, photo programs and operating systems leave beside photos; compared in lower case.
_FOLDERS: Final = {
    "@eadir": "thumbnails of a Synology",
    "#recycle": "a Synology's trash",
    "#snapshot": "a Synology's snapshots",
    "@recycle": "a QNAP's trash",
    "@recently-snapshot": "a QNAP's snapshots",
    "@transcode": "a QNAP's previews",
    "~snapshot": "a file server's snapshots",
    "$recycle.bin": "Windows' trash",
    "recycler": "Windows' trash",
    "recycled": "Windows' trash",
    "system volume information": "Windows' own",
    "found.000": "what a disk check left",
    "lost+found": "what a disk check left",
    "__macosx": "what macOS puts into archives",
    "network trash folder": "a file server's trash",
    "temporary items": "a file server's own",
    "files_trashbin": "Nextcloud's trash",
    "files_versions": "Nextcloud's old versions",
    "_gsdata_": "GoodSync's own",
    "_vti_cnf": "a web server's own",
    "captureone": "Capture One's previews",
    "[originals]": "ACDSee's originals of edited photos",
    "__pycache__": "Python's own",
    "node_modules": "a program's own",
    "thmbnl": "a camera's thumbnails",
}
_ENDS: Final = {
    ".lrdata": "Lightroom's previews",
    ".lrcat-data": "Lightroom's own",
    ".cocatalog": "Capture One's own",
    ".photoslibrary": "Apple Photos' library",
    ".aplibrary": "Aperture's library",
    ".migratedphotolibrary": "iPhoto's library",
}
# These are left beside photos as well, but could be the names of classes: they count only below a class folder.
_BELOW_A_CLASS: Final = {
    **dict.fromkeys(
        ("thumbs", "thumb", "_thumbs", "thumbnails", "thumbnail", "_thumbnails", "resized_thumbs"), "thumbnails"
    ),
    **dict.fromkeys(("previews", "preview", "proxies", "cache"), "previews"),
    **dict.fromkeys(("originals", "_originals", "originale"), "originals of edited photos"),
    **dict.fromkeys(("trash", "_trash", "deleted", "recycle", "recycle bin", "papierkorb"), "trash"),
}
_FILES: Final = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "zbthumbnail.info", "picasa.ini"})


def left_beside(parts: tuple[str, ...], labelled_from: int = 0) -> str | None:
    """Why a file is none of somebody's photos, by the folders that it lies in; None if it may be one.

    Args:
        parts: its path below the source, the file's name last.
        labelled_from: number of folders down to the one that names the class.
    """
    if any(part.startswith(".") for part in parts):
        return "a hidden file or lies in a hidden folder"
    if parts[-1].casefold() in _FILES:
        return "a file of the operating system"
    for depth, part in enumerate(parts[:-1]):
        name = part.casefold()
        what = _FOLDERS.get(name) or next((what for end, what in _ENDS.items() if name.endswith(end)), None)
        if what is None and depth >= labelled_from > 0:
            what = _BELOW_A_CLASS.get(name)
        if what is not None:
            return f"lies in {part}: {what}"
    return None
