"""Tiny models, and streams on them that are closed when a test is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sluice.pipeline import ModelCache, Setup
from tests import zoo
from tests.unit.inference.streamdiffusion.driving import SIDE, Open, Stream


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two threads of OpenMP are many times slower than one where the cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelCache:
    """A cache with the whole zoo, under the names of the hub where the pipeline looks for those."""
    root = tmp_path_factory.mktemp("models")
    hub = {
        "taesd": "madebyollin/taesd",
        "lcm-lora": "latent-consistency/lcm-lora-sdv1-5",
    }
    for name in zoo.BUILDERS:
        directory = root / hub.get(name, name).replace("/", "--")
        directory.symlink_to(zoo.model(name))
    return ModelCache(root)


@pytest.fixture(scope="session")
def kept(models: ModelCache) -> Iterator[Setup]:
    """What is shared by all tests: the usual model is loaded once, as an engine keeps it."""
    setup = Setup("cpu", models)
    stream = Stream(setup, {})
    yield setup
    stream.pipeline.close()
    assert not setup.sharing._entries


@pytest.fixture
def loaded() -> list[str]:
    """What has been loaded with `afresh`, in order: weights, autoencoder, controlnet."""
    return []


@pytest.fixture
def afresh(models: ModelCache, loaded: list[str]) -> Setup:
    """An engine in which nothing is loaded yet."""

    def note(stage: str, done: float) -> None:
        assert 0 <= done <= 1
        if done == 0 and stage != "warm-up":
            loaded.append(stage)

    return Setup("cpu", models, note)


@pytest.fixture
def opened(kept: Setup) -> Iterator[Open]:
    """Opens streams that share what can be shared; all that they took is given back."""
    with opening(kept) as open_stream:
        yield open_stream


@pytest.fixture
def opened_afresh(afresh: Setup) -> Iterator[Open]:
    """The same in an engine in which nothing is loaded yet."""
    with opening(afresh) as open_stream:
        yield open_stream


@contextmanager
def opening(setup: Setup) -> Iterator[Open]:
    streams: list[Stream] = []
    before = set(setup.sharing._entries)

    def open_stream(**changes: Any) -> Stream:
        streams.append(Stream(setup, changes))
        return streams[-1]

    yield open_stream
    for stream in streams:
        stream.pipeline.close()
    assert set(setup.sharing._entries) == before


@pytest.fixture(scope="session")
def pictures() -> list[NDArray[np.uint8]]:
    """Six that differ."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(6)]
