"""The Hugging Face hub, as far as it is needed: what a model consists of, and its files.

What goes wrong there is a HubError with a sentence that says what to do.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

WORKERS: Final = 4  # files at a time
INSTALL: Final = "huggingface_hub is not installed; get it with: pip install 'sluice[diffusion]'"


class HubError(Exception):
    """The hub has no such thing, does not give it, or cannot be reached."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a hub; `sha256` where the hub says it, which it does for large ones."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a model at a commit."""

    commit: str
    files: tuple[HubFile, ...]


class Hub(Protocol):
    """Where models come from."""

    def listing(self, name: str, revision: str | None) -> Listing:
        """What `name` has at a branch, tag or commit; None is the default branch. Raises HubError."""

    def download(self, name: str, commit: str, paths: Sequence[str], into: Path) -> None:
        """Put the files below `into`; what is there of them already may be used. Raises HubError."""


class HuggingFaceHub:
    """The real one, or what `HF_ENDPOINT` names."""

    def listing(self, name: str, revision: str | None) -> Listing:
        with _said_in_words(name, revision):
            from huggingface_hub import HfApi  # noqa: PLC0415 - an extra, and not quick to import

            info = HfApi().model_info(name, revision=revision, files_metadata=True)
        files = tuple(
            HubFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None)
            for file in info.siblings or ()
        )
        if info.sha is None:
            raise HubError(f"the hub does not say which commit of {name} it has")
        return Listing(info.sha, files)

    def download(self, name: str, commit: str, paths: Sequence[str], into: Path) -> None:
        with _said_in_words(name, commit):
            from huggingface_hub import snapshot_download  # noqa: PLC0415 - an extra, and not quick to import

            snapshot_download(
                name,
                revision=commit,
                local_dir=into,
                allow_patterns=[glob.escape(path) for path in paths],
                max_workers=WORKERS,
            )


@contextmanager
def _said_in_words(name: str, revision: str | None) -> Iterator[None]:
    try:
        from huggingface_hub import errors  # noqa: PLC0415 - an extra, and not quick to import
    except ImportError as error:
        raise HubError(INSTALL) from error
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{name} is given only to those who accept its terms: do so on its page, and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"the hub has no model {name}, or it is private: then set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{name} has no revision {revision}") from error
    except errors.HFValidationError as error:
        raise HubError(f"{name!r} is no id of the hub: {error}") from error
    except errors.OfflineModeIsEnabled as error:
        raise HubError("HF_HUB_OFFLINE is set, so nothing can be fetched") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.XetDownloadError) as error:
        raise HubError(f"{name} could not be fetched: {error}") from error
    except (
        errors.HTTPError,  # type: ignore[attr-defined] # of whichever HTTP client its version uses
        ConnectionError,
    ) as error:
        raise HubError(f"the hub cannot be reached: {error}") from error
