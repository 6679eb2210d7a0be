"""The `sluice` command: words and options in, a sentence and an exit code out; the work is done elsewhere."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer
from rich.console import Console, RenderableType
from typer.core import TyperCommand

from services.common.errors import InvalidError
from sluice import latency, tables, trace
from sluice.client import ApiError, Json, Session, SluiceClient, Stream, UnreachableError
from sluice.live import inputs
from sluice.live import run as live
from sluice.live.play import STDOUT
from sluice.live.play import container_of as container_of_play
from sluice.money import money
from sluice.settings import DEFAULT_URL, Access, access, place
from sluice.transform import arguments
from sluice.transform.display import Display
from sluice.transform.exchange import Job, RunFailedError
from sluice.transform.result import container_of, whole_or_none
from sluice.transform.run import Report, run
from sluice.transform.source import Source

WIDTH: Final = (
    100  # columns of a table at least: where there are fewer, the terminal wraps and nothing is cut
)
FAILED: Final = 1
WRONG: Final = 2
NO_CAPACITY: Final = 3
NO_CREDIT: Final = 4
CAMERA: Final = "/dev/video0"
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
TERMINATED: Final = 143

T = TypeVar("T")
app = typer.Typer(
    name="sluice",
    help="Real-time AI video: send video through a pipeline and back, look at sessions, runners and usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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
Pipeline = Annotated[
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


class TransformCommand(TyperCommand):
    """Lets `--at` take its time and its parameters as two words, which typer's lists cannot."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, arguments.joined(args))


@app.command(cls=TransformCommand)
def transform(
    clip: Annotated[Path, typer.Argument(help="The video file to send.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="What to write: .mp4, .m4v, .mov or .mkv.", show_default=False),
    ],
    pipeline: Pipeline = None,
    prompt: Prompt = None,
    param: Params = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            help="Change parameters at a time of the clip: --at 2s prompt=neon,strength=0.5."
            " The time is 2s, 1500ms or 0:02. Repeatable.",
            metavar="TIME NAME=VALUE[,...]",
        ),
    ] = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast/--realtime",
            help="As fast as the pipeline takes it and every frame back, or at the clip's own speed, where"
            " the newest frame wins.",
        ),
    ] = False,
    max_size: Annotated[
        str,
        typer.Option(
            "--max-size", help="Larger pictures are scaled down to fit, lying or standing.", metavar="WxH"
        ),
    ] = "1920x1080",
    force: Annotated[bool, typer.Option("--force", "-y", help="Replace the output if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Send a video file as a live stream and write what comes back, with the file's own sound.

    Frames keep their times, an odd side loses one pixel, rotation is applied.

    Exit codes: 0 done, 1 failed on the way, 2 wrong usage or input,
    3 no capacity, 4 no credit, 130 interrupted.
    """
    with _Ending(as_json=as_json):
        found = access(url, key, Path.cwd())
        container = container_of(output)
        params = arguments.parameters(param or [])
        if prompt is not None:
            params["prompt"] = prompt
        changes = arguments.changes(at or [])
        if changes and not changes[0].at_ms:
            params.update(changes.pop(0).params)  # from the first picture on is from the start
        limit = arguments.size(max_size)
        if output.exists() and (not force or output.is_dir()):
            raise InvalidError(
                f"{output} is a directory" if output.is_dir() else f"{output} exists; --force replaces it"
            )
        with Source(clip, limit) as source:
            if output.exists() and output.samefile(clip):
                raise InvalidError("the output is the clip itself")
            _within(changes, source.duration_s)
            with whole_or_none(output) as temporary:
                job = Job(
                    clip=clip,
                    output=temporary,
                    container=container,
                    pipeline=pipeline,
                    params=params,
                    changes=tuple(changes),
                    realtime=not fast,
                )
                report = asyncio.run(_transform(job, source, found))
        _show(report, output, as_json=as_json)


def _within(changes: list[arguments.Change], duration_s: float | None) -> None:
    for change in changes:
        if duration_s is not None and change.at_ms > duration_s * 1000:
            raise InvalidError(f"--at {change.at_ms / 1000:g}s is behind the clip's end, {duration_s:.1f} s")


async def _transform(job: Job, source: Source, found: Access) -> Report:
    task = asyncio.current_task()
    assert task is not None
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    with suppress(NotImplementedError):  # Windows has no such signal
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    console = Console(stderr=True)
    try:
        async with SluiceClient(found.url, found.key) as client:
            with Display(console, title=job.clip.name, duration_s=source.duration_s) as display:
                return await run(job, source=source, client=client, display=display)
    except asyncio.CancelledError:
        if terminated:
            raise typer.Exit(TERMINATED) from None
        raise


def _show(report: Report, output: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"output": str(output), **asdict(report)}))
        return
    console = Console(highlight=False)
    returned = f"{report.frames_returned} of {report.frames_sent} frames came back"
    lines = [f"{output}: {returned}, {report.fps:.1f} fps"]
    if report.latency_ms_p50 is not None and report.latency_ms_p95 is not None:
        lines.append(f"latency p50 {report.latency_ms_p50:.1f} ms, p95 {report.latency_ms_p95:.1f} ms")
    if report.cost_micro is not None and report.currency is not None:
        lines.append(f"cost {'' if report.cost_settled else '~'}{money(report.cost_micro, report.currency)}")
    if report.damaged_packets:
        lines.append(f"the clip is damaged: {report.damaged_packets} of its packets gave no picture")
    lines.append(f"session {report.session}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


class PublishCommand(TyperCommand):
    """Lets `--camera` stand without its device."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, arguments.with_default(args, "--camera", CAMERA))


@app.command(cls=PublishCommand)
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
    pipeline: Pipeline = None,
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
    with _Ending(as_json=as_json):
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


@app.command()
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
    with _Ending(as_json=as_json):
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
            container_of_play(Path(output))
            if Path(output).exists() and (not force or Path(output).is_dir()):
                raise InvalidError(f"{output} exists; --force replaces it")
        report = asyncio.run(live.played(target, found, output=output))
        if as_json:
            typer.echo(json.dumps(asdict(report)), err=to_stdout)
            return
        why = "stopped here" if report.stopped else report.end_reason or "the stream is over"
        typer.echo(f"{report.frames} frames, {report.seconds:.1f} s, ended: {why}", err=to_stdout)


@app.command()
def sessions(
    every: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """List your sessions, newest first."""

    async def ask(client: SluiceClient) -> tuple[Json, str]:
        return await client.sessions(ended=every), (await client.prices())["currency"]

    with _Ending(as_json=as_json):
        answer, currency = _asked(ask, access(url, key, Path.cwd()))
        _print(answer, tables.sessions(answer, currency), as_json=as_json)


@app.command()
def runners(as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """List the runners and their slots."""
    with _Ending(as_json=as_json):
        answer = _asked(SluiceClient.runners, access(url, key, Path.cwd()))
        _print(answer, tables.runners(answer), as_json=as_json)


@app.command()
def usage(as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """List what your sessions used and cost, and your balance."""

    async def ask(client: SluiceClient) -> tuple[Json, str]:
        return await client.usage(), (await client.prices())["currency"]

    with _Ending(as_json=as_json):
        answer, currency = _asked(ask, access(url, key, Path.cwd()))
        _print(answer, tables.usage(answer, currency), as_json=as_json)


@app.command("latency")
def show_latency(
    session: Annotated[
        str,
        typer.Argument(help="The session's id, ses_...; your newest if none is given.", show_default=False),
    ] = "",
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Show where the time of a session's pictures goes, stage by stage, while it runs or after."""

    async def ask(client: SluiceClient) -> Json:
        return await client.latency(session or await client.newest_session())

    with _Ending(as_json=as_json):
        answer = _asked(ask, access(url, key, Path.cwd()))
        _print(answer, latency.shown(answer), as_json=as_json)


@app.command("trace")
def show_trace(
    session: Annotated[
        str,
        typer.Argument(help="The session's id, ses_...; your newest if none is given.", show_default=False),
    ] = "",
    every: Annotated[bool, typer.Option("--all", help="Also each of the many alike, one line each.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Show what every service did for a session and when, while it runs or after."""

    async def ask(client: SluiceClient) -> tuple[Json, Session]:
        name = session or await client.newest_session()
        return await client.trace(name), await client.session(name)

    with _Ending(as_json=as_json):
        answer, record = _asked(ask, access(url, key, Path.cwd()))
        if as_json:
            typer.echo(json.dumps(answer, indent=2))
        else:
            text = trace.shown(answer, record.id, ended=record.end_reason is not None, every=every)
            Console(highlight=False).print(text, soft_wrap=True)


@app.command()
def stop(
    session: Annotated[str, typer.Argument(help="The session's id, ses_...", show_default=False)],
    url: Url = None,
    key: Key = None,
) -> None:
    """End a session. Its stream stays and can be published again."""
    with _Ending(as_json=False):
        _asked(lambda client: client.stop(session), access(url, key, Path.cwd()))
        typer.echo(f"{session} ended")


def _asked(ask: Callable[[SluiceClient], Awaitable[T]], found: Access) -> T:
    async def asking() -> T:
        async with SluiceClient(found.url, found.key) as client:
            return await ask(client)

    return asyncio.run(asking())


def _print(answer: Json, table: RenderableType, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        Console(width=max(WIDTH, Console().width)).print(table)


def exit_code(error: Exception) -> int:
    """What the shell is told of `error`."""
    match error:
        case InvalidError():
            return WRONG
        case ApiError(status=402) | RunFailedError(reason="credit_exhausted"):
            return NO_CREDIT
        case ApiError(status=503) if error.reason in {"NO_CAPACITY", "INGEST_FULL"}:
            return NO_CAPACITY
        case ApiError(status=400 | 401 | 403 | 404 | 409):
            return WRONG
        case _:
            return FAILED


class _Ending:
    """Turns what went wrong into a sentence and an exit code; anything else is a bug and keeps its trace."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        if isinstance(error, InvalidError | ApiError | UnreachableError | RunFailedError):
            typer.echo(f"sluice: {error}", err=True)
            if self._as_json:
                typer.echo(json.dumps({"error": str(error), "code": getattr(error, "code", None)}))
            raise typer.Exit(exit_code(error)) from None


def main() -> NoReturn:
    """The entry point of the command."""
    app()
    raise SystemExit(0)
