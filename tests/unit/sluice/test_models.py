from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.models.selection import BadPathError, NoWeightsError, wanted
from sluice.models.store import Store
from sluice.pipeline import ModelCache, ModelMissingError, ModelTooLargeError
from sluice.pipeline.models import (
    MANIFEST,
    ModelDamagedError,
    ModelNameError,
    ModelUnsafeError,
    directory_name,
)
from tests.support.models import FILES, TURBO, LocalHub, commit_of, put, quiet


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def store(root: Path) -> Store:
    return Store(root)


# Which files are wanted.


def test_of_a_model_in_parts_its_parts_are_wanted_and_no_whole_checkpoint() -> None:
    paths = [*FILES, "sd_turbo.safetensors", "unet/model.onnx", ".gitattributes", "image.png", "load.py"]
    assert wanted(paths, TURBO) == sorted(FILES)


def test_a_single_file_of_weights_is_a_model() -> None:
    assert wanted(["pytorch_lora_weights.safetensors", "README.md"], "style") == [
        "README.md",
        "pytorch_lora_weights.safetensors",
    ]


UNET = "unet/diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("variant", "kept"),
    [
        (None, [f"{UNET}.safetensors", "vae/model.fp16.safetensors"]),
        ("fp16", [f"{UNET}.fp16.safetensors", "vae/model.fp16.safetensors"]),
        ("bf16", [f"{UNET}.safetensors", "vae/model.fp16.safetensors"]),
    ],
)
def test_of_each_parts_weights_one_variant_is_wanted(variant: str | None, kept: list[str]) -> None:
    paths = [
        f"{UNET}.safetensors",
        f"{UNET}.fp16.safetensors",
        f"{UNET}.non_ema.safetensors",
        "vae/model.fp16.safetensors",
    ]
    assert wanted(paths, TURBO, variant=variant) == kept


def test_a_variant_in_several_files_is_wanted_whole() -> None:
    shards = [f"{UNET}.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    plain = [f"{UNET}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert wanted([*shards, *plain], TURBO, variant="fp16") == shards
    assert wanted([*shards, *plain], TURBO) == plain


def test_names_with_dots_are_no_variants() -> None:
    assert len(wanted(["style.v2.safetensors", "style.safetensors"], "style")) == 2


def test_a_part_that_is_there_only_as_a_pickle_is_refused_in_words() -> None:
    paths = ["unet/a.safetensors", "vae/diffusion_pytorch_model.bin", "vae/config.json"]
    with pytest.raises(ModelUnsafeError, match=r"vae/diffusion_pytorch_model\.bin.*run code.*--unsafe"):
        wanted(paths, TURBO)
    assert wanted(paths, TURBO, unsafe=True) == sorted(paths)


def test_a_pickle_beside_safe_weights_is_left_out_whoever_asks() -> None:
    paths = ["unet/model.bin", "unet/model.safetensors", "safety_checker/pytorch_model.bin"]
    assert wanted(paths, TURBO) == ["unet/model.safetensors"]
    assert wanted(paths, TURBO, unsafe=True) == ["unet/model.safetensors"]


@pytest.mark.parametrize("paths", [[], ["README.md", "config.json"], ["model.onnx"]])
def test_what_has_no_weights_is_no_model(paths: list[str]) -> None:
    with pytest.raises(NoWeightsError, match=r"no weights: no \.safetensors"):
        wanted(paths, TURBO)


@pytest.mark.parametrize(
    "path", ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "a\\..\\x.safetensors", ""]
)
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(BadPathError, match="leads out"):
        wanted(["a.safetensors", path], TURBO)


# What a pipeline sees.


def test_a_fetched_model_is_there_by_its_name_with_its_files(root: Path, store: Store) -> None:
    store.fetch(TURBO, LocalHub(), quiet)
    cache = ModelCache(root)
    assert cache.names() == [TURBO]
    assert (cache.path(TURBO) / "unet/diffusion_pytorch_model.safetensors").read_bytes() == b"unet" * 1000
    manifest = cache.manifest(TURBO)
    assert manifest is not None
    assert (manifest.source, manifest.revision, manifest.unsafe) == ("hub", commit_of(FILES), False)
    assert {file.path: file.sha256 for file in manifest.files} == {
        path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()
    }


def test_a_directory_that_somebody_put_there_counts_too(root: Path, tmp_path: Path) -> None:
    put(root / "tiny", {"model.safetensors": b"x"})
    (root / "someone--linked").symlink_to(put(tmp_path / "elsewhere", {"model.safetensors": b"x"}))
    cache = ModelCache(root)
    assert cache.names() == ["someone/linked", "tiny"]
    assert cache.path("someone/linked") == (tmp_path / "elsewhere").resolve()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (TURBO, f"get it with: sluice models fetch {TURBO}"),
        ("tiny", "get it with: sluice models add tiny DIRECTORY"),
        ("../../etc", "no name of a model"),
        ("/etc/passwd", "no name of a model"),
        ("a" * 5000, "no name of a model"),
        ("", "no name of a model"),
    ],
)
def test_a_model_that_is_not_here_is_said_with_how_to_get_it(root: Path, name: str, words: str) -> None:
    put(root / "other", {"model.safetensors": b""})
    with pytest.raises(ModelMissingError) as missing:
        ModelCache(root).path(name)
    assert words in str(missing.value)
    assert len(str(missing.value)) < 600


@given(st.one_of(st.text(max_size=300), st.from_regex(r"[./\\a-]{1,12}", fullmatch=True)))
def test_no_name_leads_out_of_the_cache(name: str) -> None:
    root = Path("/nowhere/models")
    try:
        directory = root / directory_name(name)
    except ModelNameError:
        return
    assert directory.parent == root
    assert not directory.name.startswith(".")
    assert len(directory.name) < 255


def test_two_names_never_have_one_directory() -> None:
    assert directory_name("a/b") == "a--b"
    with pytest.raises(ModelNameError):
        directory_name("a--b")


def test_a_model_whose_files_have_other_sizes_is_not_given_out(root: Path, store: Store) -> None:
    store.fetch(TURBO, LocalHub(), quiet)
    weights = root / "stabilityai--sd-turbo" / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"short")
    with pytest.raises(ModelDamagedError, match=r"vae/.* has 5 bytes instead of 3000; remove it with"):
        ModelCache(root).path(TURBO)
    weights.unlink()
    with pytest.raises(ModelDamagedError, match="is missing"):
        ModelCache(root).path(TURBO)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "x"}', '{"files": {"a": 5}}'])
def test_a_manifest_that_cannot_be_read_is_damage(root: Path, text: str) -> None:
    put(root / "tiny", {MANIFEST: text.encode()})
    with pytest.raises(ModelDamagedError, match="cannot be read"):
        ModelCache(root).path("tiny")


def test_an_unsafe_model_is_given_only_to_those_who_allow_it(
    root: Path, store: Store, tmp_path: Path
) -> None:
    source = put(tmp_path / "pickled", {"vae/model.bin": b"x", "unet/model.safetensors": b"y"})
    with pytest.raises(ModelUnsafeError):
        store.add("old", source, quiet)
    store.add("old", source, quiet, unsafe=True)
    with pytest.raises(ModelUnsafeError, match="run code"):
        ModelCache(root).path("old")
    assert (ModelCache(root, unsafe=True).path("old") / "vae/model.bin").is_file()


def test_a_model_that_does_not_fit_says_how_much_it_needs() -> None:
    cache = ModelCache(Path("/nowhere"))
    cache.require_memory(TURBO, 2_000_000_000, 2_000_000_000)
    with pytest.raises(ModelTooLargeError, match=r"sd-turbo needs 5\.2 GB, and 2\.0 GB are free"):
        cache.require_memory(TURBO, 5_200_000_000, 2_000_000_000)
