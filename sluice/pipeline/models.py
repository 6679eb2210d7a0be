"""Where the weights of models lie on this machine, by the names that clients may use for them.

A name is never a path: it is one of those that somebody put here, with `sluice models`. This only reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# A hub's id, such as stabilityai/sd-turbo, or a name that was given here: one or two parts, neither of which
# begins with a dot; `--` stands for the slash in the directory's name.
_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9._\-]{0,95}"
MODEL_NAME: Final = rf"^(?!.*(--|\.\.)){_PART}(/{_PART})?$"

MANIFEST: Final = ".sluice.json"  # in a model's directory: what was put there


class ModelNameError(ValueError):
    """A name that no model can have."""


class ModelMissingError(Exception):
    """A model that is not here; the message says how to get it."""


class ModelDamagedError(ModelMissingError):
    """A model whose files are not those that were put here."""


class ModelUnsafeError(ModelMissingError):
    """A model with weights that run code when they are read, where that is not allowed."""


class ModelTooLargeError(Exception):
    """A model that does not fit; the message says how much it needs."""


@dataclass(frozen=True, slots=True)
class File:
    """What a file was when it was put here; `path` is below the model's directory, with slashes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was put here, and whence: a hub's commit, or a directory."""

    name: str
    source: str
    revision: str | None
    unsafe: bool
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def to_json(self) -> str:
        return json.dumps(
            {
                "name": self.name,
                "source": self.source,
                "revision": self.revision,
                "unsafe": self.unsafe,
                "files": {file.path: {"size": file.size, "sha256": file.sha256} for file in self.files},
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises ValueError for what is none."""
        try:
            record: Mapping[str, Any] = json.loads(text)
            return cls(
                name=str(record["name"]),
                source=str(record["source"]),
                revision=record["revision"],
                unsafe=bool(record["unsafe"]),
                files=tuple(
                    File(path, int(fact["size"]), str(fact["sha256"]))
                    for path, fact in record["files"].items()
                ),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no manifest: {error!r}") from error


def directory_name(name: str) -> str:
    """Of the directory in which a model lies. Raises ModelNameError."""
    if len(name) > 200 or not re.fullmatch(MODEL_NAME, name):
        raise ModelNameError(
            f"{name[:80]!r} is no name of a model: a hub's id such as stabilityai/sd-turbo, or letters, "
            "digits and ._- of which the first is no dot"
        )
    return name.replace("/", "--")


class ModelCache:
    """The models below `root`: a directory for each name.

    A directory that somebody else put there counts, too, but nothing is known about its files. `unsafe`:
    models that were put here with `--unsafe` may be used.
    """

    def __init__(self, root: Path, *, unsafe: bool = False) -> None:
        self.root = root
        self.unsafe = unsafe

    def names(self) -> list[str]:
        """What can be named, in order."""
        if not self.root.is_dir():
            return []
        names = [entry.name.replace("--", "/") for entry in self.root.iterdir() if entry.is_dir()]
        return sorted(name for name in names if re.fullmatch(MODEL_NAME, name))

    def manifest(self, name: str) -> Manifest | None:
        """What is known about the files of `name`. Raises ModelNameError, ModelDamagedError."""
        try:
            return Manifest.from_json((self.root / directory_name(name) / MANIFEST).read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            if isinstance(error, ModelNameError):
                raise
            raise ModelDamagedError(f"{name}: its {MANIFEST} cannot be read; {_again(name)}") from error

    def path(self, name: str) -> Path:
        """The directory of `name`, with all its files, in their sizes.

        Raises ModelMissingError; ModelDamagedError and ModelUnsafeError are such.
        """
        if name not in self.names():
            raise ModelMissingError(f"no model {name[:200]!r} on this machine; {_get(name)}")
        directory = (self.root / directory_name(name)).resolve()
        manifest = self.manifest(name)
        if manifest is None:
            return directory
        if manifest.unsafe and not self.unsafe:
            raise ModelUnsafeError(
                f"{name} was put here with --unsafe: its weights run code when they are read, which is not "
                "allowed here"
            )
        for file in manifest.files:
            size = _size(directory / file.path)
            if size != file.size:
                found = "is missing" if size is None else f"has {size} bytes instead of {file.size}"
                raise ModelDamagedError(f"{name} is damaged: {file.path} {found}; {_again(name)}")
        return directory

    def require_memory(self, name: str, needed_bytes: int, free_bytes: int) -> None:
        """Raise ModelTooLargeError if there is too little."""
        if needed_bytes > free_bytes:
            raise ModelTooLargeError(
                f"{name} needs {needed_bytes / 1e9:.1f} GB, and {free_bytes / 1e9:.1f} GB are free"
            )


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _get(name: str) -> str:
    try:
        directory_name(name)
    except ModelNameError as error:
        return str(error)
    if "/" in name:
        return f"get it with: sluice models fetch {name}"
    return f"get it with: sluice models add {name} DIRECTORY"


def _again(name: str) -> str:
    return f"remove it with: sluice models remove {name}, and {_get(name)}"
