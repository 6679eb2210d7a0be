"""The `sluice` command: its subcommands by name; what they do is in `sluice.commands`."""

from __future__ import annotations

from typing import NoReturn

import typer

from sluice.commands import lists, live, moving, pipeline
from sluice.commands.live import PublishCommand
from sluice.commands.transform import TransformCommand, transform
from sluice.models import command as models

app = typer.Typer(
    name="sluice",
    help="Real-time AI video: send video through a pipeline and back, look at sessions, runners and usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(cls=TransformCommand)(transform)
app.command(cls=PublishCommand)(live.publish)
app.command()(live.play)
app.command()(lists.sessions)
app.command()(lists.runners)
app.command()(lists.usage)
app.command("latency")(lists.show_latency)
app.command("trace")(lists.show_trace)
app.command()(lists.stop)
app.command()(moving.move)
app.command()(moving.drain)
app.add_typer(pipeline.app)
app.add_typer(models.app, name="models")


def main() -> NoReturn:
    """The entry point of the command."""
    app()
    raise SystemExit(0)
