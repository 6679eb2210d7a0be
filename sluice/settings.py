"""Where the command finds the platform and its key: options, environment, then what `make run` left."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from services.common.errors import InvalidError

DEFAULT_URL: Final = "http://localhost:8000"
CREDENTIALS: Final = Path(".sluice/credentials.json")


@dataclass(frozen=True, slots=True)
class Access:
    """An installation and a tenant's key to it."""

    url: str
    key: str = field(repr=False)


def access(url: str | None, key: str | None, directory: Path) -> Access:
    """`url` and `key` if given, else those of the credentials file of `directory` or of a parent.

    The file's URL is used with the file's key only: a key that somebody gave goes where they said.
    Raises InvalidError that says where a key is looked for.
    """
    if not key:
        found = _credentials(directory)
        if found is None:
            raise InvalidError(
                "no API key: give --key, set SLUICE_API_KEY, or run in a directory below one with"
                f" {CREDENTIALS} (`make run` writes it)"
            )
        url, key = url or found.url, found.key
    return _checked(url or DEFAULT_URL, key)


def place(url: str | None, directory: Path) -> Access:
    """As `access`, for what needs no key: a playback id is one."""
    found = None if url else _credentials(directory)
    return _checked(url or (found.url if found else DEFAULT_URL), "")


def _checked(url: str, key: str) -> Access:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InvalidError(f"{url!r} is no http or https URL, such as {DEFAULT_URL}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidError("the API key has characters that no key has; was it copied whole?")
    return Access(url, key)


def _credentials(directory: Path) -> Access | None:
    for folder in (directory, *directory.parents):
        path = folder / CREDENTIALS
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                return Access(str(content["url"]), str(content["key"]))
            except (OSError, ValueError, KeyError, TypeError):
                raise InvalidError(
                    f'{path} is not {{"url": ..., "key": ...}}; `make run` rewrites it'
                ) from None
    return None
