"""A new pipeline's project: a small one that works, made of the files in `template`. Nothing is replaced."""

from __future__ import annotations

import keyword
import re
import shutil
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from services.common.errors import InvalidError

NAME: Final = re.compile(r"(?=.{1,40}\Z)[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
TAKEN: Final = frozenset({"deploy", "protos", "services", "sluice", "tests"})
FILES: Final = {
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
    "pipeline.py.txt": "{package}/__init__.py",
    "test.py.txt": "tests/test_{package}.py",
}


@dataclass(frozen=True, slots=True)
class Project:
    """What was made."""

    root: Path
    package: str
    class_name: str

    @property
    def next_steps(self) -> tuple[str, ...]:
        """Commands to type."""
        target = f"{self.package}:{self.class_name}"
        return (
            f"cd {self.root}",
            f"sluice pipeline run {target} --in clip.mp4 --out out.mp4",
            f"sluice pipeline check {target}",
        )


def begin(name: str, directory: Path) -> Project:
    """Make the project `name` in `directory`. Raises InvalidError."""
    package = name.replace("-", "_")
    if not NAME.fullmatch(name):
        raise InvalidError(f"{name!r} is no name; write lower case letters and hyphens, such as soft-glow")
    if keyword.iskeyword(package) or package in TAKEN or package in sys.stdlib_module_names:
        raise InvalidError(f"{name!r} is taken: the module {package} would hide another one")
    root = directory / name
    class_name = "".join(word.capitalize() for word in name.split("-"))
    if root.exists() or root.is_symlink():
        raise InvalidError(f"{root} exists; nothing is replaced")
    words = {"name": name, "package": package, "class_name": class_name}
    try:
        root.mkdir(parents=True)
        for template, place in FILES.items():
            made = root / place.format(package=package)
            made.parent.mkdir(exist_ok=True)
            text = (files("sluice.authoring") / "template" / template).read_text("utf-8")
            made.write_text(Template(text).substitute(words), "utf-8")
    except OSError as error:
        shutil.rmtree(root, ignore_errors=True)
        raise InvalidError(f"{root} cannot be made ({error.strerror})") from error
    return Project(root, package, class_name)
