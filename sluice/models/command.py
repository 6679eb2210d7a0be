"""`sluice models`: what this machine has of models, and how it gets them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from sluice.models.hub import HubError, HuggingFaceHub
from sluice.models.selection import BadPathError, NoWeightsError
from sluice.models.store import Store, StoreError
from sluice.pipeline.models import Manifest, ModelCache, ModelDamagedError, ModelMissingError, ModelNameError
from sluice.pipeline.setup import MODELS, models_root

FAILED: Final = 1
WRONG: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
WIDTH: Final = 100

app = typer.Typer(
    name="models",
    help="The models of this machine: fetch them from the Hugging Face hub, add, verify and remove them.",
    no_args_is_help=True,
)

Root = Annotated[
    Path | None,
    typer.Option(
        "--root", envvar=MODELS, help="Where they lie. Default: ~/.cache/sluice/models.", metavar="DIRECTORY"
    ),
]
Name = Annotated[str, typer.Argument(help="As `sluice models list` has it.", metavar="NAME")]
Unsafe = Annotated[
    bool, typer.Option("--unsafe", help="Take pickles, too, which run code when they are read.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Such as stabilityai/sd-turbo.", metavar="HUB_ID")],
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit. Default: what is here, else the newest.")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Of each part's weights this one where there is, such as fp16.")
    ] = None,
    unsafe: Unsafe = False,
    root: Root = None,
) -> None:
    """Get a model from the hub, unless it is here; what was interrupted goes on where it was."""
    with _ending():
        manifest = _store(root).fetch(
            name, HuggingFaceHub(), _tell, revision=revision, variant=variant, unsafe=unsafe
        )
        typer.echo(f"{name}: {_amount(manifest)}")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What it is to be called.", metavar="NAME")],
    source: Annotated[Path, typer.Argument(help="A directory, or a file of weights.", metavar="DIRECTORY")],
    unsafe: Unsafe = False,
    root: Root = None,
) -> None:
    """Put a model of this machine under a name that clients may use."""
    with _ending():
        manifest = _store(root).add(name, source, _tell, unsafe=unsafe)
        typer.echo(f"{name}: {_amount(manifest)}")


@app.command("list")
def list_models(as_json: AsJson = False, root: Root = None) -> None:
    """List the models that clients may name."""
    cache = ModelCache(root or models_root(), unsafe=True)
    rows = [(name, *_state(cache, name)) for name in cache.names()]
    if as_json:
        facts = [
            {
                "name": name,
                "state": state,
                "size": manifest.size if manifest else None,
                "source": manifest.source if manifest else None,
                "revision": manifest.revision if manifest else None,
                "unsafe": manifest.unsafe if manifest else None,
            }
            for name, state, manifest in rows
        ]
        typer.echo(json.dumps({"root": str(cache.root), "models": facts}, indent=1))
        return
    table = Table("model", "size", "from", "state", box=None, title_justify="left")
    for name, state, manifest in rows:
        size = f"{manifest.size / 1e9:.2f} GB" if manifest else ""
        whence = (manifest.revision or manifest.source) if manifest else ""
        table.add_row(name, size, whence, state)
    console = Console()
    console.print(table, width=max(console.width, WIDTH))
    if not rows:
        typer.echo(f"none below {cache.root}; get one with: sluice models fetch stabilityai/sd-turbo")


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Default: all of them.", metavar="[NAME]...")
    ] = None,
    root: Root = None,
) -> None:
    """Compare every file with what it was when it was put here."""
    store = _store(root)
    damaged = False
    for name in names or ModelCache(root or models_root()).names():
        with _ending(go_on=not names):
            problems = store.problems(name)
            for problem in problems or ["as it was"]:
                typer.echo(f"{name}: {problem}")
            damaged = damaged or bool(problems)
    if damaged:
        raise typer.Exit(FAILED)


@app.command()
def remove(name: Name, root: Root = None) -> None:
    """Take a model away, and what was left of an attempt to get it."""
    with _ending():
        size = _store(root).remove(name, _tell)
        typer.echo(f"{name} is removed: {size / 1e9:.2f} GB")


def _store(root: Path | None) -> Store:
    return Store(root or models_root())


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _amount(manifest: Manifest) -> str:
    return f"{len(manifest.files)} files, {manifest.size / 1e9:.2f} GB"


def _state(cache: ModelCache, name: str) -> tuple[str, Manifest | None]:
    try:
        cache.path(name)
        manifest = cache.manifest(name)
    except ModelDamagedError:
        return "damaged", None
    if manifest is None:
        return "not put here by this command", None
    return "unsafe" if manifest.unsafe else "ready", manifest


@contextmanager
def _ending(*, go_on: bool = False) -> Iterator[None]:
    """Turn what went wrong into a sentence and an exit code; anything else is a bug and keeps its trace."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (ModelNameError, NoWeightsError, ModelMissingError, BadPathError) as error:
        typer.echo(f"sluice: {error}", err=True)
        raise typer.Exit(WRONG) from None
    except (StoreError, HubError, OSError) as error:
        typer.echo(f"sluice: {error}", err=True)
        if not go_on:
            raise typer.Exit(FAILED) from None
