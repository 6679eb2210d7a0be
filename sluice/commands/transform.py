"""`sluice transform`: a file as a live stream, and what comes back as a file."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from services.common.errors import InvalidError
from sluice.client import SluiceClient
from sluice.commands.ending import TERMINATED, Ending
from sluice.commands.options import Key, Params, PipelineName, Prompt, Url
from sluice.money import money
from sluice.settings import Access, access
from sluice.transform import arguments
from sluice.transform.display import Display
from sluice.transform.exchange import Job
from sluice.transform.result import container_of, whole_or_none
from sluice.transform.run import Report, run
from sluice.transform.source import Source


class TransformCommand(TyperCommand):
    """Lets `--at` take its time and its parameters as two words, which typer's lists cannot."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, arguments.joined(args))


def transform(
    clip: Annotated[Path, typer.Argument(help="The video file to send.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="What to write: .mp4, .m4v, .mov or .mkv.", show_default=False),
    ],
    pipeline: PipelineName = None,
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
    with Ending(as_json=as_json):
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
            arguments.require_within(changes, source.duration_s)
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
