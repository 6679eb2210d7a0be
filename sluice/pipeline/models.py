"""Where the weights of models lie on this machine, by the names that clients may use for them."""

from __future__ import annotations

from pathlib import Path


class ModelMissingError(Exception):
    """A model that is not here; the message says how to get it."""


class ModelTooLargeError(Exception):
    """A model that does not fit; the message says how much it needs."""


class ModelCache:
    """The models below `root`: a directory for each name, slashes of a hub's id as `--`."""

    def __init__(self, root: Path, *, download: bool = False, unsafe: bool = False) -> None:
        self.root = root
        self.download = download
        self.unsafe = unsafe

    def names(self) -> list[str]:
        """What can be named, in order."""
        if not self.root.is_dir():
            return []
        return sorted(entry.name.replace("--", "/") for entry in self.root.iterdir() if entry.is_dir())

    def path(self, name: str) -> Path:
        """The directory of `name`. Raises ModelMissingError."""
        if name not in self.names():
            raise ModelMissingError(f"no model {name!r} here; get it with: sluice models fetch {name}")
        return (self.root / name.replace("/", "--")).resolve()

    def require_memory(self, name: str, needed_bytes: int, free_bytes: int) -> None:
        """Raise ModelTooLargeError if there is too little."""
        if needed_bytes > free_bytes:
            raise ModelTooLargeError(
                f"{name} needs {needed_bytes / 1e9:.1f} GB, and {free_bytes / 1e9:.1f} GB are free"
            )
