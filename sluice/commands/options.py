"""The options that several commands share, each said once."""

from __future__ import annotations

from typing import Annotated

import typer

from sluice.settings import DEFAULT_URL

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="SLUICE_URL", help=f"The platform. Default: {DEFAULT_URL}", metavar="URL"),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="SLUICE_API_KEY",
        help="The API key. Default: .sluice/credentials.json here or in a parent (`make run` writes it).",
        metavar="KEY",
    ),
]
PipelineName = Annotated[
    str | None, typer.Option("--pipeline", "-p", help="Default: the platform's.", show_default=False)
]
Prompt = Annotated[
    str | None, typer.Option("--prompt", help="Short for --param prompt=TEXT.", metavar="TEXT")
]
Params = Annotated[
    list[str] | None,
    typer.Option("--param", help="A parameter; JSON, or else text. Repeatable.", metavar="NAME=VALUE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's JSON.")]
