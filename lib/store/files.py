"""Files that are either whole or not there: locks, and several files put into place as one.

Needs POSIX file locks (Linux, macOS).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file; yields whether it is held: always, unless others do and `wait` is false.

    The operating system releases the lock when the process ends, however it ends. The file is
    removed on release.
    """
    import fcntl  # POSIX only; reading does not need it

    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            yield False
            return
        # The last holder may have removed the file while this one waited: then the lock is void.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                break
        os.close(descriptor)
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def replace_files(files: dict[Path, bytes]) -> None:
    """Put files of one folder into place; the last of them is there only if all the others are.

    Killed at any moment, and with several writers at once, the last file either is not there or
    stands beside the others of the same call. All are on the disk, not in its cache, on return. The
    folder is created; temporary files that a killed writer of the same last file left are removed.

    Raises:
        OSError: the disk refuses; if it refused the new texts, the old files still stand.
    """
    *_, last = files
    last.parent.mkdir(parents=True, exist_ok=True)
    with locked(_lock_file(last)):
        _remove_temporary(last)
        mark = secrets.token_hex(4)
        temporary = {
            path: last.with_name(f".{last.name}.{mark}.{number}.tmp")
            for number, path in enumerate(files)
        }
        try:
            for path, text in files.items():
                _write_synced(temporary[path], text)
            # Without the last file, no reader meets the old one beside the others' new texts.
            last.unlink(missing_ok=True)
            for path in files:
                os.replace(temporary[path], path)
            _sync_folder(last.parent)
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)


def remove_leftovers(last: Path) -> None:
    """Remove what a killed writer of `last` left beside it; waits for one that lives."""
    if _lock_file(last).exists():  # it is there as long as any temporary file is
        with locked(_lock_file(last)):
            _remove_temporary(last)


def _lock_file(last: Path) -> Path:
    return last.with_name(f".{last.name}.lock")


def _remove_temporary(last: Path) -> None:
    """Under the lock, so that nobody is writing them."""
    for path in last.parent.iterdir():
        if path.name.startswith(f".{last.name}.") and path.name.endswith(".tmp"):
            path.unlink()


def _write_synced(path: Path, text: bytes) -> None:
    with open(path, "xb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
