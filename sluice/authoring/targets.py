"""Which class an author means: a file, a file and a class, a module and a class, or an installed name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Final

from services.common.errors import InvalidError
from sluice.authoring.mistakes import AuthorError
from sluice.pipeline import Pipeline

GROUP: Final = "sluice.pipelines"


def installed() -> dict[str, EntryPoint]:
    """The pipelines of all installed packages by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def find(target: str) -> type[Pipeline]:
    """The class of `my.py`, `my.py:Class`, `module:Class` or an installed pipeline's name.

    Raises InvalidError for a target that names none, AuthorError if its module cannot be imported.
    """
    where, _, attribute = target.partition(":")
    if where.endswith(".py"):
        return _chosen(_of_file(Path(where)), attribute, where)
    if attribute:
        return _chosen(_imported(where), attribute, where)
    entry = installed().get(target)
    if entry is None:
        names = ", ".join(sorted(installed())) or "none"
        raise InvalidError(
            f"no installed pipeline {target!r}; there are: {names}."
            " A target is one of them, my.py, my.py:Class or module:Class"
        )
    return _chosen(_imported(entry.module), entry.attr, entry.module)


def _of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InvalidError(f"{path} does not exist")
    path = path.resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # what lies beside it can be imported, as when it is run
    known = path.stem in sys.modules or path.stem in sys.stdlib_module_names
    name = f"{path.stem}_of_an_author" if known else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise AuthorError(f"{path} cannot be imported", error) from error
    return module


def _imported(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise InvalidError(f"there is no module {name!r} here or in what is installed") from None
        raise AuthorError(f"{name} cannot be imported", error) from error
    except Exception as error:
        raise AuthorError(f"{name} cannot be imported", error) from error


def _chosen(module: ModuleType, attribute: str, where: str) -> type[Pipeline]:
    if attribute:
        found = getattr(module, attribute, None)
        if not isinstance(found, type) or not issubclass(found, Pipeline) or found is Pipeline:
            raise InvalidError(f"{where} has no pipeline {attribute!r}; it has: {_names(_pipelines(module))}")
        return found
    there = _pipelines(module)
    if len(there) != 1:
        if not there:
            raise InvalidError(f"{where} has no pipeline; write a class of sluice.Pipeline")
        raise InvalidError(f"{where} has several pipelines; say which: {_names(there)}")
    return there[0]


def _pipelines(module: ModuleType) -> list[type[Pipeline]]:
    return [
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, Pipeline) and one.__module__ == module.__name__
    ]


def _names(pipelines: list[type[Pipeline]]) -> str:
    return ", ".join(one.__name__ for one in pipelines) or "none"
