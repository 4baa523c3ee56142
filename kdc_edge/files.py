"""Files and folders that are either whole or not there: written beside their target and renamed in when complete.

A kill leaves at most a hidden `.NAME.*.partial` beside the target, which the next write of that target removes. A full
disk is ResourceError. Durable: what was renamed in has been flushed to disk before.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import math
import os
import shutil
import sys
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from kdc_edge.errors import BundleError, ResourceError, UsageError

if sys.platform != "win32":
    import fcntl

AT_FDCWD, SWAP = -100, 2  # linux/fcntl.h; SWAP is RENAME_EXCHANGE there and RENAME_SWAP on macOS
MISSES = 3  # locks that are not had in a row: this system has none
BUNDLE, CHECKPOINT = "manifest.json", "model_index.json"  # files by which a folder of that kind is known
MARKS = (BUNDLE, CHECKPOINT)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_json(path: Path, infinities: bool = False) -> Any:
    """Strict JSON: UTF-8, no key twice, NaN and Infinity only where `infinities` lets them. Raises BundleError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file; fetch or make the folder again") from None
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: not UTF-8 at byte {error.start}; fetch or make it again") from None
    try:
        if infinities:
            return json.loads(text, object_pairs_hook=_no_duplicates)
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON: {error}; fetch or make it again") from None


def write_json(path: Path, data: object) -> None:
    """Indented for reading; replaces the file atomically."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(path, f"{text}\n".encode())


def replace_file(path: Path, data: bytes) -> None:
    """Atomically make `data` the content of `path`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file at; it becomes `path` if the block ends without an error."""
    target = Path(os.path.realpath(path))
    with _workspace(target) as folder:
        temporary = folder / target.name
        yield temporary
        _flush(folder)
        os.replace(temporary, target)


@contextlib.contextmanager
def replace_dir(target: Path, force: bool, marks: Collection[str] = MARKS) -> Iterator[Path]:
    """An empty folder to fill; it becomes `target` if the block ends without an error, else it is removed.

    An existing target is UsageError, unless `force` and it has one of `marks`: then the two are exchanged atomically
    where the system can; where it cannot, `recover` puts the old one back after a kill between the two renames.
    """
    target = Path(os.path.realpath(target))
    recover(target)
    refuse_existing(target, force, marks)
    with _workspace(target) as folder:
        yield folder
        _flush(folder)
        if target.is_dir() and any(target.iterdir()):
            refuse_existing(target, force, marks)
            _exchange(folder, target)
        else:
            os.rename(folder, target)


def recover(target: Path) -> None:
    """Undo a replacement that was killed half way; to be called before `target` is opened."""
    previous = _previous(target)
    if previous.exists():
        if target.exists():
            shutil.rmtree(previous, ignore_errors=True)
        else:
            os.rename(previous, target)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """An existing folder for this process alone; UsageError where another one has it. Gone with the process."""
    lock = _lock(folder)
    if lock is None and sys.platform != "win32":
        raise UsageError(f"{folder} is in use by another process; wait for it, or choose another folder")
    try:
        yield
    finally:
        _unlock(lock)


def disk_full(error: BaseException) -> bool:
    """Whether the disk or a quota ran out, also where a library wraps the system's error in one of its own."""
    return getattr(error, "errno", None) in DISK_FULL or f"os error {errno.ENOSPC}" in str(error)


@contextlib.contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """A locked hidden folder beside `target`, gone afterwards unless it was renamed away."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder, lock = _make_workspace(target)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _unlock(lock)
    except Exception as error:
        if disk_full(error):
            raise ResourceError(f"{target}: the disk is full; nothing was left behind, free some space") from error
        raise


def _make_workspace(target: Path) -> tuple[Path, int | None]:
    """A new locked workspace; what killed writers left is removed."""
    for entry in list(target.parent.iterdir()):
        if entry.name.startswith(f".{target.name}.") and entry.name.endswith(".partial"):
            _remove_if_abandoned(entry)
    missed = 0
    while True:
        fresh = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
        fresh.mkdir()
        lock = _lock(fresh)
        if fresh.exists() and (lock is not None or missed >= MISSES):
            return fresh, lock
        _unlock(lock)  # another writer took it for abandoned in between
        shutil.rmtree(fresh, ignore_errors=True)
        missed += 1


def _remove_if_abandoned(folder: Path) -> None:
    lock = _lock(folder)
    if lock is not None:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def _lock(folder: Path) -> int | None:
    """The system's advisory lock on a folder, gone when its process is; None where it is taken, or there is none."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # another writer has just removed it
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def refuse_existing(target: Path, force: bool, marks: Collection[str] = MARKS) -> None:
    """UsageError if writing `target` would be refused; to be called before hours of work, too."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not force:
        raise UsageError(f"{target} exists; choose another output folder or pass --force to replace it")
    if not any((target / mark).is_file() for mark in marks):
        raise UsageError(f"{target} has no {' or '.join(marks)}, so --force leaves it alone; remove it yourself")


def refuse_output(target: Path, run: Path, force: bool, marks: Collection[str] = MARKS) -> None:
    """`refuse_existing` of what a run makes, and UsageError where the folder that the run works in would be in its way."""
    if run.resolve().is_relative_to(target.resolve()):
        raise UsageError(
            f"-o {target} would take the place of the run's own {run}; give another, as {run / 'checkpoint'}"
        )
    refuse_existing(target, force, marks)


def refuse_overlap(written: Path, source: Path) -> None:
    """UsageError where a folder to write is the one that is read, or one of the two is inside the other."""
    target, origin = written.resolve(), source.resolve()
    if target.is_relative_to(origin):
        where = "is" if target == origin else "is inside"
    elif origin.is_relative_to(target):
        where = "is around"
    else:
        return
    raise UsageError(f"{written} {where} {source}, which is only read; choose another output folder")


def _exchange(folder: Path, target: Path) -> None:
    """Put `folder` in `target`'s place; the old content ends up in the workspace or is removed."""
    if _swap(folder, target):
        return
    previous = _previous(target)
    os.rename(target, previous)
    os.rename(folder, target)
    shutil.rmtree(previous, ignore_errors=True)


def _swap(a: Path, b: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot."""
    if sys.platform == "win32":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(a), os.fsencode(b)
    if hasattr(libc, "renameat2"):
        return libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], SWAP) == 0
    return hasattr(libc, "renamex_np") and libc.renamex_np(*names, SWAP) == 0


def _previous(target: Path) -> Path:
    return target.parent / f".{target.name}.previous"


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    """`1e999` is JSON and becomes infinity."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise ValueError(f"a key is there twice among {', '.join(key for key, _ in pairs)}")
    return data
