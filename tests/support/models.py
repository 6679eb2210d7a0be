"""A hub that is a mapping, at the boundary of the real one, and models to put somewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sluice.models.hub import HubError, HubFile, Listing

TURBO = "stabilityai/sd-turbo"
FILES: Mapping[str, bytes] = {
    "model_index.json": b"{}",
    "README.md": b"# A model",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"unet" * 1000,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"vae" * 1000,
    "tokenizer/merges.txt": b"a b",
}


def commit_of(files: Mapping[str, bytes]) -> str:
    return hashlib.sha1(b"".join(files.values())).hexdigest()


class LocalHub:
    """What stands at the boundary of the real one: models by their names and revisions."""

    def __init__(self, models: Mapping[str, Mapping[str, bytes]] | None = None) -> None:
        self.revisions: dict[tuple[str, str | None], Mapping[str, bytes]] = {}
        for name, files in (models or {TURBO: FILES}).items():
            self.revisions[name, None] = files
        self.asked = 0
        self.downloaded: list[str] = []
        self.before_file: Callable[[str, Path], None] = lambda path, into: None

    def listing(self, name: str, revision: str | None) -> Listing:
        self.asked += 1
        if (name, revision) not in self.revisions:
            raise HubError(f"the hub has no model {name}, or it is private: then set HF_TOKEN")
        files = self.revisions[name, revision]
        return Listing(
            commit_of(files),
            tuple(
                HubFile(path, len(data), hashlib.sha256(data).hexdigest() if "safetensors" in path else None)
                for path, data in files.items()
            ),
        )

    def download(self, name: str, commit: str, paths: Sequence[str], into: Path) -> None:
        (files,) = [files for files in self.revisions.values() if commit_of(files) == commit][:1]
        for path in paths:
            if (into / path).is_file():
                continue  # of an earlier attempt
            self.before_file(path, into)
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            (into / path).write_bytes(files[path])
            self.downloaded.append(path)


def put(directory: Path, files: Mapping[str, bytes]) -> Path:
    for path, data in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return directory


def quiet(line: str) -> None:
    """Tell nobody."""
