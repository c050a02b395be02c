"""Fixtures that the tests of speculative decoding share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from autotune.serving.server.server import Server
from tests.serving.real_server import SharedServer
from tests.serving.tiny_models import TinyModels, tiny_models

__all__ = ["doomed_server", "real_server", "tiny_models"]


@pytest.fixture(scope="session")
def shared_server(
    tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharedServer]:
    shared = SharedServer(tiny_models, tmp_path_factory.mktemp("real-server"))
    yield shared
    shared.stop()


@pytest.fixture
def real_server(shared_server: SharedServer) -> Server:
    """A real vLLM server with a drafter, for questions that leave it as it is."""
    return shared_server.get()


@pytest.fixture
def doomed_server(shared_server: SharedServer) -> Iterator[Server]:
    """The same server for the test that ends it, which comes last (tests/conftest.py)."""
    yield shared_server.get()
    shared_server.stop()
