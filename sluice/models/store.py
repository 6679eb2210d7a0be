"""Puts models below a root, and takes them away: one that is seen there is whole.

A model is made in a directory beside and moved to its place in one step. Whoever works on a model holds its
lock, which the system gives back when the process dies; what a dead one left is finished or thrown away by
the next.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sluice.models.hub import Hub
from sluice.models.selection import has_pickles, wanted
from sluice.pipeline.models import (
    MANIFEST,
    File,
    Manifest,
    ModelCache,
    ModelDamagedError,
    ModelMissingError,
    directory_name,
)

LOCK_WAIT_S: Final = 3600.0  # for somebody else's download of the same model
LOCK_POLL_S: Final = 0.2
CHUNK: Final = 1 << 20

Tell = Callable[[str], None]


class StoreError(Exception):
    """Something that cannot be done here, in a sentence."""


class BusyError(StoreError):
    """Somebody else works on the model for too long."""


class NoRoomError(StoreError):
    """The disk is too small; the message says how much it needs."""


class Store:
    """The models below `root`, to be changed."""

    def __init__(self, root: Path, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self._root = root
        self._cache = ModelCache(root, unsafe=True)
        self._lock_wait_s = lock_wait_s

    def fetch(
        self,
        name: str,
        hub: Hub,
        tell: Tell,
        *,
        revision: str | None = None,
        variant: str | None = None,
        unsafe: bool = False,
    ) -> Manifest:
        """Get a model from the hub, unless it is here; with `revision`, unless it is here in that one.

        What is here stays until the other is whole. Raises ModelNameError, StoreError, ModelUnsafeError,
        NoWeightsError, HubError, ModelDamagedError for what came over wrong.
        """
        with self._locked(name, tell) as place:
            here = self._whole(name)
            if here is not None and revision is None:
                tell(f"{name} is here already")
                return here
            listing = hub.listing(name, revision)
            if here is not None and here.revision == listing.commit:
                tell(f"{name} is here already, at {listing.commit}")
                return here
            paths = wanted([file.path for file in listing.files], name, variant=variant, unsafe=unsafe)
            facts = {file.path: file for file in listing.files if file.path in set(paths)}
            size = sum(file.size for file in facts.values())
            making = place.making(f"hub {listing.commit}")
            self._require_room(name, size - _size_of(making))
            tell(f"{name}: {len(paths)} files, {size / 1e9:.1f} GB, of {listing.commit}")
            with _no_room_said(name):
                hub.download(name, listing.commit, paths, making)
                tell(f"{name}: verifying")
                files = tuple(_measured(making, path) for path in paths)
            for file in files:
                fact = facts[file.path]
                if file.size != fact.size or fact.sha256 not in {None, file.sha256}:
                    shutil.rmtree(making)
                    raise ModelDamagedError(f"{name}: {file.path} came over damaged; fetch it again")
            manifest = Manifest(name, "hub", listing.commit, has_pickles(paths), files)
            place.take(manifest)
            return manifest

    def add(self, name: str, source: Path, tell: Tell, *, unsafe: bool = False) -> Manifest:
        """Put the files of a directory, or one file of weights, here under a name.

        They are linked where that is possible, and copied where not; links are followed, as in the hub's own
        cache. Raises ModelNameError, StoreError, ModelUnsafeError, NoWeightsError.
        """
        found = _files_of(source)
        with self._locked(name, tell) as place:
            if place.target.exists():
                raise StoreError(f"{name} is here already; remove it with: sluice models remove {name}")
            paths = wanted(found, name, unsafe=unsafe)
            making = place.making(None)
            if source.stat().st_dev != self._root.stat().st_dev:  # else links need no room
                self._require_room(name, sum(found[path].stat().st_size for path in paths))
            with _no_room_said(name):
                for path in paths:
                    copy = making / path
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    _link_or_copy(found[path], copy)
                tell(f"{name}: computing the checksums of {len(paths)} files")
                files = tuple(_measured(making, path) for path in paths)
            manifest = Manifest(name, str(source.resolve()), None, has_pickles(paths), files)
            place.take(manifest)
            return manifest

    def problems(self, name: str) -> list[str]:
        """What is wrong with a model's files, each in a few words; nothing is good.

        Raises ModelMissingError, ModelNameError, ModelDamagedError.
        """
        directory = self._root / directory_name(name)
        if name not in self._cache.names():
            raise ModelMissingError(f"there is no {name} here")
        manifest = self._cache.manifest(name)
        if manifest is None:
            raise StoreError(f"{name} was not put here by this command, so nothing is known of its files")
        found = _files_of(directory)
        problems: list[str] = []
        for file in manifest.files:
            if file.path not in found:
                problems.append(f"{file.path} is missing")
            elif _measured(directory, file.path) != file:
                problems.append(f"{file.path} is not what it was")
        known = {file.path for file in manifest.files}
        return problems + [f"{path} was not there" for path in found if path not in known]

    def remove(self, name: str, tell: Tell) -> int:
        """Take a model away, and what was left of an attempt to get it; return its size in bytes.

        Raises ModelMissingError, ModelNameError, BusyError.
        """
        with self._locked(name, tell) as place:
            size = _size_of(place.target) + _size_of(place.partial)
            if not place.target.is_symlink() and not place.target.exists() and not place.partial.exists():
                raise ModelMissingError(f"there is no {name} here")
            place.clear()
            return size

    def _whole(self, name: str) -> Manifest | None:
        """What is known of a model that is here with all its files."""
        try:
            self._cache.path(name)
        except ModelMissingError:
            return None
        manifest = self._cache.manifest(name)
        if manifest is None:
            raise StoreError(
                f"{name} is here, though not by this command; remove it with: sluice models remove {name}"
            )
        return manifest

    def _require_room(self, name: str, needed: int) -> None:
        free = shutil.disk_usage(self._root).free
        if needed > free:
            raise NoRoomError(
                f"{name} needs {needed / 1e9:.1f} GB more below {self._root}, "
                f"and {free / 1e9:.1f} GB are free"
            )

    @contextmanager
    def _locked(self, name: str, tell: Tell) -> Iterator[_Place]:
        place = _Place(self._root, directory_name(name))
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self._root} cannot be made: {error.strerror}") from error
        with place.lock.open("w") as lock:
            deadline = time.monotonic() + self._lock_wait_s
            told = False
            while not _locked_now(lock.fileno()):
                if time.monotonic() > deadline:
                    raise BusyError(f"somebody else has been busy with {name} for too long")
                if not told:
                    tell(f"waiting for somebody else who is busy with {name}")
                    told = True
                time.sleep(LOCK_POLL_S)
            place.settle()
            yield place


class _Place:
    """Where a model is or will be: its directory, and those beside while it changes."""

    def __init__(self, root: Path, directory: str) -> None:
        self.target = root / directory
        self.partial = root / f".partial-{directory}"
        self.old = root / f".old-{directory}"
        self.lock = root / f".lock-{directory}"  # stays: who removes a lock locks nobody out

    def settle(self) -> None:
        """End what somebody who died had begun: the old one is back, or gone."""
        if self.old.exists():
            if self.target.exists():
                shutil.rmtree(self.old)
            else:
                self.old.rename(self.target)

    def making(self, of: str | None) -> Path:
        """A directory to put files in; with what an earlier attempt `of` the same left there."""
        mark = self.partial / ".of"
        files = self.partial / "files"
        if of is None or not mark.is_file() or mark.read_text("utf-8") != of:
            if self.partial.exists():
                shutil.rmtree(self.partial)
            files.mkdir(parents=True)
            mark.write_text(of or "", "utf-8")
        return files

    def take(self, manifest: Manifest) -> None:
        """Move what was made to its place: only the files of the manifest, and it."""
        files = self.partial / "files"
        kept = {files / file.path for file in manifest.files}
        for directory, names, file_names in os.walk(files, topdown=False):
            for path in (Path(directory) / name for name in file_names):
                if path not in kept:
                    path.unlink()
            for path in (Path(directory) / name for name in names):
                if not any(path.iterdir()):
                    path.rmdir()
        (files / MANIFEST).write_text(manifest.to_json(), "utf-8")
        if self.target.exists():
            self.target.rename(self.old)
        files.rename(self.target)
        shutil.rmtree(self.partial)
        if self.old.exists():
            shutil.rmtree(self.old)

    def clear(self) -> None:
        """Take all of it away; the model is gone first, and at once."""
        if self.target.is_symlink():
            self.target.unlink()
        elif self.target.exists():
            self.target.rename(self.old)
            shutil.rmtree(self.old)
        if self.partial.exists():
            shutil.rmtree(self.partial)


def _locked_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _files_of(source: Path) -> Mapping[str, Path]:
    """The files below a directory by their paths in it, or the one file by its name. Raises StoreError."""
    if source.is_file():
        return {source.name: source}
    if not source.is_dir():
        raise StoreError(f"{source} is neither a directory nor a file")
    return {
        path.relative_to(source).as_posix(): path
        for path in sorted(source.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def _size_of(directory: Path) -> int:
    if directory.is_symlink() or not directory.is_dir():
        return 0
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _measured(directory: Path, path: str) -> File:
    digest, size = hashlib.sha256(), 0
    with (directory / path).open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return File(path, size, digest.hexdigest())


def _link_or_copy(source: Path, copy: Path) -> None:
    try:
        os.link(source.resolve(), copy)
    except OSError as error:
        # Another file system, one without links, or somebody else's file.
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP}:
            raise
        shutil.copyfile(source, copy)


@contextmanager
def _no_room_said(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoRoomError(f"{name}: there is no room left on the disk") from error
        raise
