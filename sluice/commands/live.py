"""`sluice publish` and `sluice play`: a live stream in, a live stream out."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from services.common.errors import InvalidError
from sluice.client import Stream
from sluice.commands.ending import Ending
from sluice.commands.options import Key, Params, PipelineName, Prompt, Url
from sluice.live import inputs
from sluice.live import run as live
from sluice.live.play import STDOUT, container_of
from sluice.settings import access, place
from sluice.transform import arguments

CAMERA: Final = "/dev/video0"


class PublishCommand(TyperCommand):
    """Lets `--camera` stand without its device."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, arguments.with_default(args, "--camera", CAMERA))


def publish(
    source: Annotated[
        str | None, typer.Argument(help="A video file, or an rtmp or http URL.", show_default=False)
    ] = None,
    camera: Annotated[
        str | None,
        typer.Option(
            "--camera", help=f"Publish a camera instead; {CAMERA} if none is named.", metavar="[DEVICE]"
        ),
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option("--stream", help="Publish to this stream, str_..., and not to a new one.", metavar="ID"),
    ] = None,
    pipeline: PipelineName = None,
    prompt: Prompt = None,
    param: Params = None,
    name: Annotated[str, typer.Option("--name", help="The new stream's name. Default: the source's.")] = "",
    loop: Annotated[bool, typer.Option("--loop", help="Begin a file again where it ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Publish a file, a camera or another stream as a live stream, until it ends or Ctrl-C.

    H.264, AAC and Opus are sent as they are where that can be; anything else is encoded. A connection that
    breaks is made again. Exit codes: as of transform, but 0 after Ctrl-C.
    """
    with Ending(as_json=as_json):
        if (source is None) is (camera is None):
            raise InvalidError("name a file or a URL, or --camera")
        found = access(url, key, Path.cwd())
        params = arguments.parameters(param or [])
        if prompt is not None:
            params["prompt"] = prompt
        where = inputs.place_of(source) if source is not None else inputs.camera(camera or CAMERA)
        if loop and where.kind is not inputs.Kind.FILE:
            raise InvalidError("--loop is for files")
        wish = live.Wish(stream=stream, pipeline=pipeline, params=params, name=name or where.name)
        with inputs.Input(where) as opened:
            announce = _silent if as_json else _announce
            report = asyncio.run(live.published(opened, wish, found, loop=loop, announce=announce))
        if as_json:
            typer.echo(json.dumps(asdict(report)))
            return
        typer.echo(
            f"{report.frames_sent} frames in {report.seconds:.1f} s, session {report.session}"
            f" ended: {report.end_reason or 'not yet'}"
        )


def _silent(stream: Stream) -> None:
    """For scripts: one object at the end and nothing else."""


def _announce(stream: Stream) -> None:
    typer.echo(f"stream {stream.id}")
    for way, where in (("WHEP", stream.whep_url), ("HLS", stream.hls_url), ("MPEG-TS", stream.play_url)):
        if where:
            typer.echo(f"play   {where}  ({way})")


def play(
    target: Annotated[
        str, typer.Argument(help="A stream's id, str_..., or a playback id, pbk_....", show_default=False)
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="A .ts, .mp4, .m4v, .mov or .mkv file, or - for standard output.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-y", help="Replace the output if it exists.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end, on stderr with -o -.")
    ] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Play a stream's output: into a file, a pipe, or ffplay or mpv, until it ends or Ctrl-C.

    Exit codes: as of transform, but 0 after Ctrl-C.
    """
    with Ending(as_json=as_json):
        if target.startswith(live.PLAYBACK_PREFIX):
            found = place(url, Path.cwd())
        elif target.startswith(live.STREAM_PREFIX):
            found = access(url, key, Path.cwd())
        else:
            raise InvalidError(f"{target!r} is no stream's id (str_...) and no playback id (pbk_...)")
        if output is None and not sys.stdout.isatty():
            raise InvalidError("there is no terminal to play from: give -o out.ts, -o out.mp4, or -o -")
        to_stdout = output == STDOUT
        if output is not None and not to_stdout:
            container_of(Path(output))
            if Path(output).exists() and (not force or Path(output).is_dir()):
                raise InvalidError(f"{output} exists; --force replaces it")
        report = asyncio.run(live.played(target, found, output=output))
        if as_json:
            typer.echo(json.dumps(asdict(report)), err=to_stdout)
            return
        why = "stopped here" if report.stopped else report.end_reason or "the stream is over"
        typer.echo(f"{report.frames} frames, {report.seconds:.1f} s, ended: {why}", err=to_stdout)
