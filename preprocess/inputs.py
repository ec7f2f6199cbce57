"""Every file below --in, in one order, with an id that says nothing about its path."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from medcoss.contracts import MedcossError, UsageError
from preprocess.conversion import InputFile, Outcome, Status
from preprocess.split import Salt

_MASK_FOLDERS = frozenset({"mask", "masks", "label", "labels", "labelstr", "labelsts"})


def find_files(roots: Sequence[Path], *, leave_out: Iterable[Path] = ()) -> list[InputFile]:
    """All files below `roots`, each once, sorted by relative path; folders in `leave_out` are not entered.

    Links are followed, but no folder is entered twice on one way down. The order of `roots` does not matter: where two
    of them hold the same relative path, the one whose root sorts later gets a prefix.

    Raises `UsageError` if a root is missing or nothing is found, `MedcossError` if a folder cannot be listed.
    """
    closed = {path.resolve() for path in leave_out}
    found: dict[str, InputFile] = {}
    seen: set[str] = set()
    for root in roots:
        if not root.exists():
            raise UsageError(f"no such input: {root}: name an existing file or folder with --in")
    for root in sorted({root.resolve() for root in roots}):
        above = _slashed(root if root.is_dir() else root.parent)
        for real, place in _walk(root, closed):
            if real in seen:
                continue
            seen.add(real)
            relative = place.removeprefix(above)
            if relative in found:
                relative = f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}/{relative}"
            found[relative] = InputFile(place, relative)
    if not found:
        raise UsageError(f"no files in {', '.join(str(root) for root in roots)}: give a folder with files to --in")
    return [found[relative] for relative in sorted(found)]


def _walk(root: Path, closed: set[Path]) -> Iterator[tuple[str, str]]:
    """(path by the real folder, path) of every file, in the same order on every file system."""
    if not root.is_dir():
        yield str(root), str(root)
        return
    stack: list[tuple[Path, tuple[Path, ...]]] = [(root, ())]
    while stack:
        folder, above = stack.pop()
        real = folder.resolve()
        if real in above or real in closed:
            continue
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            # Folders bear patients' names, and this line may go to a log.
            raise MedcossError(
                f"a folder in {root} cannot be listed ({error.strerror}): check its permissions; "
                "find DIR -type d ! -readable names such folders"
            ) from error
        folders = {entry.name for entry in listed if _is_folder(entry)}
        stack += [(Path(entry.path), (*above, real)) for entry in reversed(listed) if entry.name in folders]
        below = _slashed(real)
        yield from ((below + entry.name, entry.path) for entry in listed if entry.name not in folders)


def _slashed(folder: Path) -> str:
    return str(folder).rstrip("/") + "/"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: a file that cannot be opened
        return False


def input_id(salt: Salt, relative: str) -> str:
    """The pseudonymous id under which logs and outcomes name an input file."""
    return salt.token("input", relative, length=16)


def stamp(files: Iterable[InputFile]) -> str:
    """Changes when one of the files is written anew (size or modification time) or goes. 16 hex characters."""
    return hashlib.sha256("".join(map(_mark, files)).encode()).hexdigest()[:16]


def _mark(file: InputFile) -> str:
    try:
        information = _status(file)
    except OSError:
        return "gone;"
    return f"{information.st_size}:{information.st_mtime_ns};"


def _status(file: InputFile) -> os.stat_result:
    return os.stat(file.place)  # noqa: PTH116 -- to make a Path takes longer than the call


def file_bytes(file: InputFile) -> int:
    """Size of a file in bytes, 0 if it is not there."""
    try:
        return _status(file).st_size
    except OSError:
        return 0


def sort_out(files: Sequence[InputFile], masks: Sequence[Path], tables: Sequence[Path]) -> dict[str, Outcome]:
    """Outcomes, by relative path, of files that no modality is asked about: masks, label tables, things not files."""
    mask_roots = tuple(path.resolve() for path in masks)
    label_tables = {path.resolve() for path in tables}
    table_names = {path.name for path in tables}
    outcomes = {}
    for file in files:
        # Resolving takes long on network file systems: only where it can matter.
        if file.place.rpartition("/")[2] in table_names and file.path.resolve() in label_tables:
            outcomes[file.relative] = Outcome(Status.SKIPPED, "label_table")
        elif _in_mask_folder(file.relative) or (mask_roots and _below(file.path, mask_roots)):
            outcomes[file.relative] = Outcome(Status.SKIPPED, "mask")
        elif problem := _not_regular(file):
            outcomes[file.relative] = problem
    return outcomes


def _in_mask_folder(relative: str) -> bool:
    return any(part.lower() in _MASK_FOLDERS for part in relative.split("/")[:-1])


def _below(path: Path, roots: tuple[Path, ...]) -> bool:
    real = path.resolve()
    return any(real.is_relative_to(root) for root in roots)


def _not_regular(file: InputFile) -> Outcome | None:
    try:
        mode = _status(file).st_mode
    except OSError as error:
        return Outcome(Status.FAILED, "unreadable", error.strerror or "cannot be opened")
    # Opening a pipe would wait for ever.
    return None if stat.S_ISREG(mode) else Outcome(Status.SKIPPED, "not_an_input", "not a regular file")
