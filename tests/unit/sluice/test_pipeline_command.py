"""`sluice pipeline run`, `new` and `check`, as an author types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from services.common.media.mpegts import CLOCK_HZ
from sluice.authoring.targets import find
from sluice.cli import app
from sluice.conformance.suite import CHECKS
from tests.support import clips

TIMES = [0, 3003, 6006, 9009, 12_600, 15_600, 27_000, 30_000, 33_000, 36_000]
GREY = '''
import threading
from sluice import Apply, Param, ParamError, Pipeline
import numpy as np

class Grey(Pipeline):
    """Shows its parameters."""
    name, version, description = "grey", "1.0", "A flat picture."
    processes_audio = True
    params = {
        "level": Param(default=40, help="Live.", minimum=0, maximum=255),
        "table": Param(default=0, help="Warm.", minimum=0, maximum=100, apply=Apply.WARM),
        "model": Param(default=0, help="Reload.", minimum=0, maximum=100, apply=Apply.RELOAD),
    }

    def load(self, setup, params):
        setup.progress("weights", 0.5)
        setup.progress("weights", 1.0)
        if params["model"] == 99:
            raise ParamError("model", "there is no 99")
        self.model, self.table, self.thread = params["model"], params["table"], threading.get_ident()

    def prepare(self, params):
        if params["table"] == 99:
            raise ParamError("table", "there is no 99")
        assert threading.get_ident() != self.thread
        return params["table"]

    def adopt(self, prepared):
        self.table = prepared

    def process(self, frame, params):
        if params["level"] == 255:
            raise ParamError("level", "too bright")
        self.say({"level": params["level"]})
        self.say({"nothing": np.float32(1)})
        return frame.with_rgb(np.full_like(frame.rgb, params["level"] + self.table + self.model))

    def process_audio(self, frame, params):
        return frame.with_samples(frame.samples * np.float32(0.25))
'''
BROKEN = """
from sluice import Pipeline

class Broken(Pipeline):
    name, version, description = "broken", "1.0", "Fails at its third picture."
    count = 0

    def process(self, frame, params):
        self.count += 1
        return frame if self.count < 3 else self.deeper()

    def deeper(self):
        try:
            {}["model"]
        except KeyError as error:
            raise RuntimeError("my own mistake") from error
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a directory of its own; what it imports is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def sluice(*words: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["pipeline", *map(str, words)])


def ran(*words: str | Path) -> dict[str, Any]:
    result = sluice("run", *words, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def clip(**how: Any) -> Path:
    return clips.clip(Path("in.mp4"), TIMES, **how)


def levels(path: str) -> list[float]:
    """The middle of each picture's range."""
    with av.open(path) as container:
        return [float(frame.to_ndarray(format="rgb24").mean()) for frame in container.decode(video=0)]


def loudest(path: str) -> float:
    with av.open(path) as container:
        return max(float(np.abs(frame.to_ndarray()).max()) for frame in container.decode(audio=0))


def test_every_picture_is_there_at_its_time_and_every_stage_is_timed() -> None:
    report = ran("passthrough", "--in", clip(audio="aac"), "--out", "out.mp4")
    assert [round(time * CLOCK_HZ) for time in clips.video_times(Path("out.mp4"))] == TIMES
    for ours, theirs in zip(clips.halves(Path("out.mp4")), clips.halves(Path("in.mp4")), strict=True):
        assert ours == pytest.approx(theirs, abs=5)
    length_s = clips.sound_span(Path("in.mp4"))[1]
    assert clips.sound_span(Path("out.mp4"))[1] == pytest.approx(length_s, abs=0.03)
    assert report["frames"] == len(TIMES)
    assert report["fps"] > 0
    assert set(report["stages"]) == {"decode", "process", "encode"}
    for stage in report["stages"].values():
        assert 0 <= stage["p50_ms"] <= stage["p95_ms"]
    assert 10 < report["peak_memory_mb"] < 100_000


def test_live_warm_and_reload_take_effect_in_the_picture_at_their_time() -> None:
    report = ran(
        *(write("grey.py", GREY), "-i", clip(), "-o", "out.mp4", "--param", "level=20"),
        *("--at", "100ms", "level=60", "--at", "200ms", "table=50", "--at", "0.35s", "model=100"),
    )
    expected = [20] * 3 + [60] * 3 + [110] * 2 + [210] * 2
    assert levels("out.mp4") == pytest.approx(expected, abs=4)
    assert [change["applies"] for change in report["changes"]] == ["live", "warm", "reload"]
    assert [change["params"] for change in report["changes"]] == [
        {"level": 60},
        {"table": 50},
        {"model": 100},
    ]
    assert report["load_stages"][0][0] == "weights"


def test_a_value_that_the_pipeline_refuses_leaves_the_values_before_it() -> None:
    report = ran(
        *(write("grey.py", GREY), "-i", clip(), "-o", "out.mp4"),
        *("--at", "100ms", "model=99", "--at", "200ms", "table=99", "--at", "300ms", "level=80"),
        *("--at", "350ms", "level=255", "--at", "390ms", "table=10"),
    )
    assert levels("out.mp4") == pytest.approx([40] * 6 + [80] * 3 + [90], abs=4)
    assert [change["refused"] for change in report["changes"] if change["refused"]] == [
        "model: there is no 99",
        "table: there is no 99",
        "level: too bright",
    ]
    for value, code, said in (
        ("model=99", 2, "params.model: there is no 99"),
        ("level=255", 1, "grey failed at 0.000"),
    ):
        result = sluice("run", "grey.py", "-i", "in.mp4", "--param", value)
        assert result.exit_code == code
        assert result.stderr.splitlines()[-1].startswith(f"sluice: {said}")


def test_a_model_that_is_not_here_is_a_sentence_that_says_how_to_get_it() -> None:
    text = BROKEN + "\n    def load(self, setup, params):\n        setup.models.path('acme/tiny')\n"
    result = sluice("run", write("modelled.py", text), "-i", clip(), "--models", "models")
    assert result.exit_code == 2
    assert "sluice models fetch acme/tiny" in result.stderr
    assert "Traceback" not in result.stderr


def test_sound_goes_through_a_pipeline_that_processes_it() -> None:
    source = clip(audio="aac", audio_s=0.6, audio_from_s=0.2)
    before = clips.tone_from_s(source) - float(clips.video_times(source)[0])
    report = ran(write("grey.py", GREY), "-i", source, "-o", "out.mp4")
    assert loudest("out.mp4") == pytest.approx(loudest("in.mp4") / 4, rel=0.15)
    length_s = clips.sound_span(source)[1]
    assert clips.sound_span(Path("out.mp4"))[1] == pytest.approx(length_s, abs=0.06)
    with av.open("out.mp4") as container:
        first = next(frame for frame in container.decode(audio=0) if np.abs(frame.to_ndarray()).max() > 0.02)
        begins_s = float(first.time or 0)
    assert begins_s == pytest.approx(before, abs=0.03)
    assert report["stages"]["sound"]["p50_ms"] >= 0


def test_what_it_says_is_told_and_what_cannot_go_out_is_counted() -> None:
    report = ran(write("grey.py", GREY), "-i", clip(), "--limit", "3")
    assert [(one["at_s"], one["data"]) for one in report["sayings"]] == [
        (0.0, {"level": 40}),
        (0.033, {"level": 40}),
        (0.067, {"level": 40}),
    ]
    assert list(report["unsaid"].values()) == [3]
    assert report["frames"] == 3
    shown = sluice("run", "grey.py", "-i", "in.mp4").stdout
    assert "said 10 things:" in shown
    assert "cannot go out: no JSON" in shown


def test_for_people_there_is_a_table_and_what_changed() -> None:
    result = sluice("run", write("grey.py", GREY), "-i", clip(), "-o", "out.mp4", "--at", "200ms", "table=1")
    assert "grey 1.0: 10 frames, " in result.stdout
    assert "0.2 s: table=1: warm, prepared in " in result.stdout
    assert "p95 ms" in result.stdout
    assert "wrote out.mp4" in result.stdout
    assert "loading: weights" in result.stderr


def test_a_failure_is_shown_whole_and_only_of_the_authors_code() -> None:
    result = sluice("run", write("broken.py", BROKEN), "-i", clip(), "-o", "out.mp4")
    assert result.exit_code == 1
    assert result.stderr.count("Traceback") == 2, "and what led to it"
    assert "KeyError: 'model'" in result.stderr
    assert "RuntimeError: my own mistake" in result.stderr
    assert "rehearsal.py" not in result.stderr
    assert "run.py" not in result.stderr
    assert result.stderr.splitlines()[-1] == "sluice: broken failed at 0.067 s, in picture 2"
    assert not Path("out.mp4").exists()
    assert not list(Path().glob("*.part")) + list(Path().glob(".*.part"))


@pytest.mark.parametrize("leaves", ["KeyboardInterrupt", "__import__('bdb').BdbQuit"])
def test_ctrl_c_and_leaving_the_debugger_leave_nothing_behind(leaves: str) -> None:
    text = BROKEN.replace("self.deeper()", f"self.stop({leaves})")
    text += "\n    def stop(self, error):\n        raise error\n"
    result = sluice("run", write("broken.py", text), "-i", clip(), "-o", "out.mp4")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted")
    assert sorted(path.name for path in Path().iterdir() if path.is_file()) == ["broken.py", "in.mp4"]


def test_what_no_pipeline_may_return_is_a_sentence() -> None:
    text = BROKEN.replace("return frame if", "return frame.rgb if")
    result = sluice("run", write("broken.py", text), "-i", clip())
    assert result.exit_code == 1
    assert "process returned ndarray, not a VideoFrame" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        (BROKEN.replace('"broken", "1.0"', '"Broken!", "1.0"'), "Broken.name: 'Broken!' does not match"),
    ],
)
def test_a_file_that_cannot_be_imported_shows_why(text: str, said: str) -> None:
    result = sluice("run", write("mine.py", text), "-i", clip())
    assert result.exit_code == 1
    assert said in result.stderr
    assert "mine.py" in result.stderr
    assert "targets.py" not in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing", "-i", "in.mp4"], "no installed pipeline 'nothing'; there are: "),
        (["nothing.py", "-i", "in.mp4"], "nothing.py does not exist"),
        (["nothing:Mine", "-i", "in.mp4"], "there is no module 'nothing'"),
        (["grey.py:Gray", "-i", "in.mp4"], "grey.py has no pipeline 'Gray'; it has: Grey"),
        (["two.py", "-i", "in.mp4"], "two.py has several pipelines; say which: Grey, Other"),
        (["none.py", "-i", "in.mp4"], "none.py has no pipeline; write a class of sluice.Pipeline"),
        (["grey.py", "-i", "none.mp4"], "none.mp4 does not exist"),
        (["grey.py", "-i", "grey.py"], "is not a video"),
        (["grey.py", "-i", "in.mp4", "-o", "out.avi"], "the output is .mp4, .m4v, .mov or .mkv"),
        (["grey.py", "-i", "in.mp4", "-o", "in.mp4"], "in.mp4 exists; --force replaces it"),
        (["grey.py", "-i", "in.mp4", "-o", "in.mp4", "-y"], "the output is the clip itself"),
        (["grey.py", "-i", "in.mp4", "--param", "level=300"], "params.level: 300 is greater than"),
        (["grey.py", "-i", "in.mp4", "--param", "lever=3"], "unknown parameter 'lever'"),
        (["grey.py", "-i", "in.mp4", "--at", "0.1s", "level=-1"], "params.level: -1 is less than"),
        (["grey.py", "-i", "in.mp4", "--at", "soon", "level=1"], "'soon' is no time"),
        (["grey.py", "-i", "in.mp4", "--at", "9s", "level=1"], "--at 9s is behind the clip's end, 0.4 s"),
    ],
)
def test_wrong_usage_is_a_sentence_before_anything_begins(words: list[str], said: str) -> None:
    clip()
    write("grey.py", GREY)
    write("two.py", GREY + "\nclass Other(Grey):\n    name = 'other'\n")
    write("none.py", "from sluice import Pipeline\n")
    result = sluice("run", *words)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_module_is_found_here_and_a_file_finds_what_lies_beside_it() -> None:
    write("beside.py", "LEVEL = 7\n")
    write("mine.py", "import beside\n" + GREY)
    assert find("mine:Grey").__name__ == "Grey"
    assert find("mine.py").__name__ == "Grey"
    assert find("mine.py:Grey").name == "grey"
    assert find(write("json.py", GREY)).name == "grey"
    assert json.loads("1") == 1, "a file that has the name of a module hides none"


# --- new


def test_a_new_project_works_as_it_is() -> None:
    result = sluice("new", "soft-glow")
    assert result.exit_code == 0
    assert "cd soft-glow" in result.stdout
    root = Path("soft-glow")
    metadata = tomllib.loads((root / "pyproject.toml").read_text())
    entry = metadata["project"]["entry-points"]["sluice.pipelines"]
    assert entry == {"soft-glow": "soft_glow:SoftGlow"}
    assert not any(one.startswith("sluice") for one in metadata["project"]["dependencies"])
    environment = {**os.environ, "PYTHONPATH": f"{root.resolve()}:{Path(__file__).parents[3]}"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider"],
        cwd=root, env=environment, capture_output=True, text=True, timeout=25, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_a_new_project_is_clean() -> None:
    assert sluice("new", "soft-glow", "--dir", "a/b").exit_code == 0
    root = Path("a/b/soft-glow")
    for words in (["check", "--isolated"], ["format", "--isolated", "--check", "--line-length", "110"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "."], cwd=root, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name", ["../x", "Soft", "soft_glow", "-a", "a--b", "1st", "a" * 41, "", "json", "class"]
)
def test_a_name_that_is_none_makes_nothing(name: str) -> None:
    assert sluice("new", "--", name).exit_code == 2
    assert not list(Path().iterdir())


def test_nothing_is_replaced() -> None:
    kept = Path("soft-glow")
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    result = sluice("new", "soft-glow")
    assert (result.exit_code, result.stderr) == (2, "sluice: soft-glow exists; nothing is replaced\n")
    assert [path.name for path in kept.iterdir()] == ["mine.txt"]


# --- check


def test_check_shows_a_line_for_each_check_and_fails_with_the_pipeline() -> None:
    result = sluice("check", "passthrough", "--only", "sizes", "--only", "sound")
    assert result.exit_code == 0, result.output
    assert "ok" in result.stdout
    assert "processes_audio is False" in result.stdout
    assert "passthrough 1.0: all is well" in result.stdout
    result = sluice("check", write("broken.py", BROKEN), "--only", "input", "--only", "closing")
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "my own mistake" in result.stdout
    assert "the rule: nobody writes into a picture that was given" in result.stdout
    assert "broken 1.0: 1 of 2 checks failed" in result.stdout


def test_check_is_json_for_programs() -> None:
    result = sluice("check", "passthrough", "--only", "times", "--json")
    told = json.loads(result.stdout)
    assert told["passed"] is True
    assert told["findings"][0]["check"] == "times"
    assert told["findings"][0]["outcome"] == "passed"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["passthrough", "--only", "beauty"], f"no check 'beauty'; there are: {CHECKS[0].name}"),
        (["passthrough", "--param", "a=1"], "unknown parameter 'a'; passthrough has: none"),
        (["nothing"], "no installed pipeline 'nothing'"),
        (["passthrough", "--device", "gpu"], "'gpu' is no device; write cpu, cuda or cuda:1"),
    ],
)
def test_check_refuses_wrong_usage(words: list[str], said: str) -> None:
    result = sluice("check", *words)
    assert result.exit_code == 2
    assert said in result.stderr
