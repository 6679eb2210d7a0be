from __future__ import annotations

import errno
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from sluice.models.command import app
from sluice.models.hub import HubError
from sluice.models.selection import BadPathError
from sluice.models.store import BusyError, NoRoomError, Store, StoreError
from sluice.pipeline import ModelCache, ModelMissingError
from sluice.pipeline.models import MANIFEST, ModelDamagedError, ModelNameError
from tests.support.models import FILES, TURBO, LocalHub, commit_of, put, quiet


class Interrupted(BaseException):
    """As a signal would."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def store(root: Path) -> Store:
    return Store(root)


def visible(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))


# Fetching.


def test_what_is_here_is_not_asked_for_again(store: Store) -> None:
    hub, lines = LocalHub(), list[str]()
    first = store.fetch(TURBO, hub, quiet)
    assert store.fetch(TURBO, hub, lines.append) == first
    assert (hub.asked, lines) == (1, [f"{TURBO} is here already"])


def test_another_revision_takes_the_place_of_the_one_before(root: Path, store: Store) -> None:
    hub = LocalHub()
    hub.revisions[TURBO, "v2"] = {**FILES, "unet/diffusion_pytorch_model.safetensors": b"new"}
    store.fetch(TURBO, hub, quiet)
    manifest = store.fetch(TURBO, hub, quiet, revision="v2")
    path = ModelCache(root).path(TURBO)
    assert (path / "unet/diffusion_pytorch_model.safetensors").read_bytes() == b"new"
    downloads = len(hub.downloaded)
    assert store.fetch(TURBO, hub, quiet, revision="v2") == manifest
    assert len(hub.downloaded) == downloads
    assert visible(root) == ["stabilityai--sd-turbo"]


def test_the_model_before_stays_until_the_other_is_whole(root: Path, store: Store) -> None:
    hub = LocalHub()
    hub.revisions[TURBO, "v2"] = {**FILES, "unet/diffusion_pytorch_model.safetensors": b"new"}
    first = store.fetch(TURBO, hub, quiet)

    def interrupt(path: str, into: Path) -> None:
        raise Interrupted

    hub.before_file = interrupt
    with pytest.raises(Interrupted):
        store.fetch(TURBO, hub, quiet, revision="v2")
    assert ModelCache(root).manifest(TURBO) == first
    assert store.problems(TURBO) == []


def test_what_was_interrupted_is_not_there_and_goes_on_where_it_was(root: Path, store: Store) -> None:
    hub = LocalHub()

    def interrupt(path: str, into: Path) -> None:
        if path.startswith("vae/diffusion"):
            raise Interrupted

    hub.before_file = interrupt
    with pytest.raises(Interrupted):
        store.fetch(TURBO, hub, quiet)
    assert ModelCache(root).names() == []
    before = list(hub.downloaded)
    assert before
    hub.before_file = lambda path, into: None
    store.fetch(TURBO, hub, quiet)
    assert sorted(hub.downloaded) == sorted(FILES), "each once"
    assert store.problems(TURBO) == []
    assert visible(root) == ["stabilityai--sd-turbo"]
    assert not list(root.glob(".partial-*"))


def test_an_attempt_at_another_commit_is_thrown_away(root: Path, store: Store) -> None:
    hub = LocalHub()

    def interrupt(path: str, into: Path) -> None:
        if path.startswith("vae/diffusion"):
            raise Interrupted

    hub.before_file = interrupt
    with pytest.raises(Interrupted):
        store.fetch(TURBO, hub, quiet)
    hub.before_file = lambda path, into: None
    newer = {**FILES, "unet/diffusion_pytorch_model.safetensors": b"new"}
    hub.revisions[TURBO, None] = newer
    assert store.fetch(TURBO, hub, quiet).revision == commit_of(newer)
    assert store.problems(TURBO) == []


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("unet/diffusion_pytorch_model.safetensors", b"unet" * 999 + b"tenu"),
        ("unet/diffusion_pytorch_model.safetensors", b"short"),
        ("unet/config.json", b"{"),  # of which the hub says only the size
    ],
)
def test_what_came_over_damaged_is_refused_and_fetched_whole_the_next_time(
    root: Path, store: Store, path: str, data: bytes
) -> None:
    hub = LocalHub()

    def damage(next_path: str, into: Path) -> None:
        if next_path.startswith("vae/config"):  # after the U-Net
            put(into, {path: data})

    hub.before_file = damage
    with pytest.raises(ModelDamagedError, match=r"unet/.* came over damaged"):
        store.fetch(TURBO, hub, quiet)
    assert ModelCache(root).names() == []
    hub.before_file = lambda path, into: None
    store.fetch(TURBO, hub, quiet)
    assert store.problems(TURBO) == []


def test_what_died_between_two_steps_is_settled_by_the_next(root: Path, store: Store) -> None:
    store.fetch(TURBO, LocalHub(), quiet)
    target, old = root / "stabilityai--sd-turbo", root / ".old-stabilityai--sd-turbo"
    target.rename(old)  # killed before the new one was in its place
    assert ModelCache(root).names() == []
    hub = LocalHub()
    store.fetch(TURBO, hub, quiet)
    assert hub.asked == 0, "the one before is back"
    put(old, {"rest": b""})  # killed before the old one was gone
    store.fetch(TURBO, hub, quiet)
    assert not old.exists()


def test_a_model_that_is_damaged_is_fetched_again(root: Path, store: Store) -> None:
    store.fetch(TURBO, LocalHub(), quiet)
    (root / "stabilityai--sd-turbo" / "vae/config.json").unlink()
    store.fetch(TURBO, LocalHub(), quiet)
    assert store.problems(TURBO) == []


def test_two_who_fetch_at_once_fetch_once(root: Path) -> None:
    hub, begun, may_end = LocalHub(), threading.Event(), threading.Event()

    def pause(path: str, into: Path) -> None:
        begun.set()
        assert may_end.wait(20)

    hub.before_file = pause
    lines: list[str] = []
    waits = threading.Event()

    def tell(line: str) -> None:
        lines.append(line)
        waits.set()

    first = threading.Thread(target=lambda: Store(root).fetch(TURBO, hub, quiet))
    first.start()
    assert begun.wait(20)
    second = threading.Thread(target=lambda: Store(root).fetch(TURBO, hub, tell))
    second.start()
    assert waits.wait(20)
    may_end.set()
    first.join(20)
    second.join(20)
    assert lines == [f"waiting for somebody else who is busy with {TURBO}", f"{TURBO} is here already"]
    assert sorted(hub.downloaded) == sorted(FILES)
    assert ModelCache(root).names() == [TURBO]


def test_nobody_waits_for_ever(root: Path) -> None:
    hub = LocalHub()

    def meanwhile(path: str, into: Path) -> None:
        hub.before_file = lambda path, into: None
        with pytest.raises(BusyError, match="somebody else"):
            Store(root, lock_wait_s=0).fetch(TURBO, hub, quiet)
        Store(root, lock_wait_s=0).fetch("other", LocalHub({"other": FILES}), quiet)

    hub.before_file = meanwhile
    Store(root).fetch(TURBO, hub, quiet)
    assert ModelCache(root).names() == ["other", TURBO]


def test_too_small_a_disk_is_said_before_anything_is_fetched(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    hub = LocalHub()
    with pytest.raises(NoRoomError, match=r"needs 0\.0 GB more below .*, and 0\.0 GB are free"):
        store.fetch(TURBO, hub, quiet)
    assert not hub.downloaded
    assert ModelCache(root).names() == []


def test_a_disk_that_fills_up_meanwhile_is_said_too(root: Path, store: Store) -> None:
    hub = LocalHub()

    def fill(path: str, into: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    hub.before_file = fill
    with pytest.raises(NoRoomError, match="no room left"):
        store.fetch(TURBO, hub, quiet)
    assert ModelCache(root).names() == []


def test_what_the_hub_does_not_have_leaves_nothing(root: Path, store: Store) -> None:
    with pytest.raises(HubError, match="has no model"):
        store.fetch("someone/nothing", LocalHub(), quiet)
    assert visible(root) == []


def test_a_hub_that_names_files_elsewhere_gets_nothing_written(root: Path, store: Store) -> None:
    with pytest.raises(BadPathError):
        store.fetch("evil", LocalHub({"evil": {"../../x.safetensors": b"x"}}), quiet)
    assert visible(root) == []


# Adding, verifying, removing.


def test_a_directory_of_the_hubs_own_cache_can_be_added(root: Path, store: Store, tmp_path: Path) -> None:
    blobs = put(tmp_path / "blobs", {"1": b"weights", "2": b"{}"})
    snapshot = tmp_path / "snapshots" / "abc"
    (snapshot / "unet").mkdir(parents=True)
    (snapshot / "unet/model.safetensors").symlink_to(blobs / "1")
    (snapshot / "unet/config.json").symlink_to("../../../blobs/2")
    manifest = store.add("mine", snapshot, quiet)
    assert (manifest.source, manifest.revision) == (str(snapshot), None)
    shutil.rmtree(tmp_path / "blobs")
    path = ModelCache(root).path("mine")
    assert (path / "unet/model.safetensors").read_bytes() == b"weights"
    assert not (path / "unet/model.safetensors").is_symlink()


def test_a_file_of_weights_can_be_added(root: Path, store: Store, tmp_path: Path) -> None:
    put(tmp_path, {"style.safetensors": b"lora"})
    store.add("my-style", tmp_path / "style.safetensors", quiet)
    assert (ModelCache(root).path("my-style") / "style.safetensors").read_bytes() == b"lora"


def test_where_nothing_can_be_linked_it_is_copied(
    root: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, copy: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.link", link)
    store.add("mine", put(tmp_path / "source", FILES), quiet)
    assert store.problems("mine") == []


def test_only_what_a_model_needs_is_added(root: Path, store: Store, tmp_path: Path) -> None:
    store.add("mine", put(tmp_path / "source", {**FILES, "train.py": b"", "notes.docx": b""}), quiet)
    found = {path.name for path in ModelCache(root).path("mine").rglob("*") if path.is_file()}
    assert found == {Path(path).name for path in FILES} | {MANIFEST}


def test_a_name_is_given_once(store: Store, tmp_path: Path) -> None:
    source = put(tmp_path / "source", FILES)
    store.add("mine", source, quiet)
    with pytest.raises(StoreError, match="here already; remove it with: sluice models remove mine"):
        store.add("mine", source, quiet)


@pytest.mark.parametrize("name", ["../x", ".hidden", "a/b/c", "a--b", "", "x" * 300, "a b", "a\n"])
def test_a_name_that_cannot_be_is_refused_wherever_it_is_given(
    root: Path, store: Store, tmp_path: Path, name: str
) -> None:
    source = put(tmp_path / "source", FILES)
    for attempt in (
        lambda: store.fetch(name, LocalHub(), quiet),
        lambda: store.add(name, source, quiet),
        lambda: store.remove(name, quiet),
        lambda: store.problems(name),
    ):
        with pytest.raises(ModelNameError, match="no name of a model"):
            attempt()
    assert not root.exists()


def test_every_byte_is_compared(root: Path, store: Store) -> None:
    store.fetch(TURBO, LocalHub(), quiet)
    directory = root / "stabilityai--sd-turbo"
    assert store.problems(TURBO) == []
    put(directory, {"vae/diffusion_pytorch_model.safetensors": b"vax" * 1000, "unet/extra.json": b"{}"})
    (directory / "tokenizer/merges.txt").unlink()
    assert store.problems(TURBO) == [
        "tokenizer/merges.txt is missing",
        "vae/diffusion_pytorch_model.safetensors is not what it was",
        "unet/extra.json was not there",
    ]


def test_what_is_removed_is_gone_and_what_it_was_made_of_is_not(
    root: Path, store: Store, tmp_path: Path
) -> None:
    source = put(tmp_path / "source", FILES)
    store.add("mine", source, quiet)
    (root / "linked").symlink_to(source)
    assert store.remove("mine", quiet) > 7000
    store.remove("linked", quiet)
    assert visible(root) == []
    assert (source / "unet/config.json").is_file()
    with pytest.raises(ModelMissingError, match="no mine here"):
        store.remove("mine", quiet)


def test_what_an_attempt_left_can_be_removed(root: Path, store: Store) -> None:
    hub = LocalHub()

    def interrupt(path: str, into: Path) -> None:
        if path.startswith("vae/diffusion"):
            raise Interrupted

    hub.before_file = interrupt
    with pytest.raises(Interrupted):
        store.fetch(TURBO, hub, quiet)
    assert store.remove(TURBO, quiet) > 4000
    assert not list(root.glob(".partial-*"))


# The command.


def test_the_command_adds_lists_verifies_and_removes(root: Path, tmp_path: Path) -> None:
    source, at = put(tmp_path / "source", FILES), ["--root", str(root)]
    run = CliRunner()
    added = run.invoke(app, ["add", "mine", str(source), *at])
    assert (added.exit_code, added.stdout) == (0, "mine: 7 files, 0.00 GB\n")
    assert "computing the checksums" in added.stderr
    listed = json.loads(run.invoke(app, ["list", "--json", *at]).stdout)
    assert listed["models"] == [
        {
            "name": "mine",
            "state": "ready",
            "size": sum(map(len, FILES.values())),
            "source": str(source),
            "revision": None,
            "unsafe": False,
        }
    ]
    assert "ready" in run.invoke(app, ["list", *at]).stdout
    assert run.invoke(app, ["verify", *at]).stdout == "mine: as it was\n"
    put(root / "mine", {"vae/config.json": b"[]"})
    verified = run.invoke(app, ["verify", "mine", *at])
    assert (verified.exit_code, verified.stdout) == (1, "mine: vae/config.json is not what it was\n")
    assert run.invoke(app, ["remove", "mine", *at]).exit_code == 0
    assert "none below" in run.invoke(app, ["list", *at]).stdout


def test_the_root_may_come_from_the_environment(root: Path, tmp_path: Path) -> None:
    put(tmp_path / "source", FILES)
    environment = {"SLUICE_MODELS": str(root)}
    CliRunner().invoke(app, ["add", "mine", str(tmp_path / "source")], env=environment)
    assert ModelCache(root).names() == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["fetch", "../x"], 2, "no name of a model"),
        (["add", "mine", "/nowhere/at/all"], 1, "neither a directory nor a file"),
        (["remove", "mine"], 2, "there is no mine here"),
        (["verify", "mine"], 2, "there is no mine here"),
    ],
)
def test_the_command_ends_with_a_sentence(root: Path, arguments: list[str], code: int, words: str) -> None:
    ended = CliRunner().invoke(app, [*arguments, "--root", str(root)])
    assert ended.exit_code == code
    assert ended.stderr.startswith("sluice: ")
    assert words in ended.stderr
    assert "Traceback" not in ended.output


def test_verifying_all_goes_on_past_what_it_knows_nothing_of(root: Path, store: Store) -> None:
    put(root / "by-hand", {"model.safetensors": b"x"})
    store.fetch(TURBO, LocalHub(), quiet)
    verified = CliRunner().invoke(app, ["verify", "--root", str(root)])
    assert verified.exit_code == 0
    assert verified.stdout == f"{TURBO}: as it was\n"
    assert "by-hand was not put here by this command" in verified.stderr
