"""`sluice pipeline`: what an author of one needs before there is a platform to run it on."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from services.common.errors import InvalidError
from sluice.authoring import project
from sluice.authoring.display import Display, lines, summary
from sluice.authoring.run import Job, Progress, run
from sluice.authoring.targets import find
from sluice.commands.ending import FAILED, Ending
from sluice.commands.options import Params
from sluice.conformance import Finding, Outcome, check
from sluice.conformance.suite import CHECKS
from sluice.pipeline import ModelCache, Setup
from sluice.transform import arguments
from sluice.transform.clip import Clip
from sluice.transform.result import container_of, whole_or_none

app = typer.Typer(
    name="pipeline",
    help="Write a pipeline: begin one, run it on a file, check it. No services are needed.",
    no_args_is_help=True,
)

CHECK_NAMES: Final = tuple(one.name for one in CHECKS)
MARKS: Final = {
    Outcome.PASSED: Text("ok", "green"),
    Outcome.FAILED: Text("FAILED", "bold red"),
    Outcome.NOT_APPLICABLE: Text("-", "dim"),
}
DEVICE: Final = re.compile(r"cpu|cuda(:\d{1,2})?")
MARK_WIDTH: Final = 6
NAME_WIDTH: Final = max(map(len, CHECK_NAMES))

Target = Annotated[
    str,
    typer.Argument(
        help="my.py, my.py:Class, module:Class, or the name of an installed pipeline.", show_default=False
    ),
]
Device = Annotated[str, typer.Option("--device", help="What it computes on: cpu, cuda or cuda:1.")]
Models = Annotated[
    Path | None,
    typer.Option(
        "--models",
        help="Where models lie. Default: SLUICE_MODELS, or ~/.cache/sluice/models.",
        metavar="DIR",
    ),
]


class RunCommand(TyperCommand):
    """Lets `--at` take its time and its parameters as two words, which typer's lists cannot."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, arguments.joined(args))


@app.command("run", cls=RunCommand)
def run_on_file(
    target: Target,
    clip: Annotated[Path, typer.Option("--in", "-i", help="The video file to read.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="What to write: .mp4, .m4v, .mov or .mkv. Without it nothing is written."
        ),
    ] = None,
    param: Params = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            help="Change parameters at a time of the clip: --at 2s radius=9. The time is 2s, 1500ms or 0:02."
            " Repeatable.",
            metavar="TIME NAME=VALUE[,...]",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Stop after so many pictures.", min=1, metavar="N")
    ] = None,
    max_size: Annotated[
        str, typer.Option("--max-size", help="Larger pictures are scaled down to fit.", metavar="WxH")
    ] = "1920x1080",
    device: Device = "cpu",
    models: Models = None,
    force: Annotated[bool, typer.Option("--force", "-y", help="Replace the output if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Put a video file through a pipeline in this process: a debugger works, and every stage is timed.

    Every picture is processed, however long it takes; sound goes through the pipeline if that processes it,
    and else beside it. A change takes effect in the picture at its time, whether it is live, warm or reload.

    Exit codes: 0 done, 1 the pipeline failed, 2 wrong usage or input, 130 interrupted.
    """
    with Ending(as_json=as_json):
        params = arguments.parameters(param or [])
        changes = arguments.changes(at or [])
        size = arguments.size(max_size)
        container = container_of(output) if output is not None else ""
        if output is not None and output.exists() and (not force or output.is_dir()):
            raise InvalidError(
                f"{output} is a directory" if output.is_dir() else f"{output} exists; --force replaces it"
            )
        pipeline = find(target)
        with ExitStack() as stack:
            opened = stack.enter_context(Clip(clip, size))
            arguments.require_within(changes, opened.duration_s)
            if output is not None and output.exists() and output.samefile(clip):
                raise InvalidError("the output is the clip itself")
            temporary = stack.enter_context(whole_or_none(output) if output is not None else nullcontext())
            display = stack.enter_context(
                Display(Console(stderr=True), title=clip.name, duration_s=opened.duration_s)
            )
            progress = Progress(display)
            setup = _setup(device, models, progress)
            job = Job(
                pipeline=pipeline,
                setup=setup,
                clip=clip,
                output=temporary,
                container=container,
                params=params,
                changes=changes,
                limit=limit,
            )
            report = run(job, opened, display, progress)
        if as_json:
            typer.echo(json.dumps({"output": str(output) if output else None, **asdict(report)}))
            return
        console = Console(highlight=False)
        for line in lines(report):
            console.print(line, markup=False, soft_wrap=True)
        console.print(summary(report))
        if output is not None:
            console.print(f"wrote {output}", markup=False, soft_wrap=True)


@app.command("new")
def new_project(
    name: Annotated[
        str, typer.Argument(help="Of the pipeline: lower case, such as soft-glow.", show_default=False)
    ],
    directory: Annotated[
        Path, typer.Option("--dir", help="Where the project's folder is made.", metavar="DIR")
    ] = Path(),
) -> None:
    """Begin a pipeline: a project that works, with a class, its test, and the entry that makes it findable.

    Nothing is replaced that is there already.
    """
    with Ending(as_json=False):
        made = project.begin(name, directory)
        typer.echo(f"{made.root}: a pipeline that works. Next:")
        for line in made.next_steps:
            typer.echo(f"  {line}")


@app.command("check")
def check_pipeline(
    target: Target,
    param: Params = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Just this check. Repeatable.", metavar="CHECK")
    ] = None,
    device: Device = "cpu",
    models: Models = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Check that a pipeline keeps what the platform relies on.

    --param replaces a default in all checks. In a test of yours: sluice.conformance.check(MyPipeline).

    Exit codes: 0 all is well, 1 a check failed, 2 wrong usage.
    """
    with Ending(as_json=as_json):
        pipeline = find(target)
        wanted = set(only or ())
        if unknown := sorted(wanted - set(CHECK_NAMES)):
            raise InvalidError(f"no check {unknown[0]!r}; there are: {', '.join(CHECK_NAMES)}")
        setup = _setup(device, models)
        report = check(
            pipeline,
            setup=setup,
            params=arguments.parameters(param or []),
            only=lambda name: not wanted or name in wanted,
            told=_silent if as_json else _tell,
        )
        if as_json:
            typer.echo(json.dumps(report.as_json()))
        else:
            failed = sum(one.outcome is Outcome.FAILED for one in report.findings)
            verdict = f"{failed} of {len(report.findings)} checks failed" if failed else "all is well"
            typer.echo(f"\n{report.pipeline} {report.version}: {verdict}")
        if not report.passed:
            raise typer.Exit(FAILED)


def _setup(device: str, models: Path | None, progress: Progress | None = None) -> Setup:
    if not DEVICE.fullmatch(device):
        raise InvalidError(f"{device!r} is no device; write cpu, cuda or cuda:1")
    usual = Setup.plain("cuda:0" if device == "cuda" else device)
    return replace(
        usual,
        models=ModelCache(models) if models is not None else usual.models,
        progress=progress or usual.progress,
    )


def _silent(finding: Finding) -> None:
    """For scripts: one object at the end and nothing else."""


def _tell(finding: Finding) -> None:
    """A line of the table, as soon as it is known."""
    row = Table.grid(padding=(0, 2))
    row.add_column(width=MARK_WIDTH)
    row.add_column(width=NAME_WIDTH)
    row.add_column(overflow="fold")
    note = finding.note
    if finding.outcome is Outcome.FAILED:
        note = f"{note}\nthe rule: {finding.rule}"
    row.add_row(MARKS[finding.outcome], finding.check, Text(note))
    Console(highlight=False).print(row)
