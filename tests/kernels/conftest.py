"""Fixtures that the tests of kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.installed_vllm import InstalledVllm


@pytest.fixture(scope="session")
def installed_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledVllm]:
    """The installed vLLM, for tests with the marker ``server``."""
    found = InstalledVllm(tmp_path_factory.mktemp("vllm"))
    yield found
    found.close()
