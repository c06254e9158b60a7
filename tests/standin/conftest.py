"""Fixtures for the tests that run with the stand-in driver, and for the outer test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sdexport.pipeline.loaded_model import LoadedModel
    from sdexport.pipeline.pipeline import Pipeline


@pytest.fixture
def standin() -> Iterator[Any]:
    """The stand-in driver; a test that does not release everything fails."""
    from tests.standin.world import Standin

    driver = Standin()
    driver.device()
    before = driver.held()
    yield driver
    driver.revive()
    driver.device()
    assert driver.held() == before, "something was not given back"


@pytest.fixture(scope="session")
def parts() -> LoadedModel:
    """The bundle's parts on the processor, one thread."""
    from tests.standin.world import host_parts

    return host_parts()


@pytest.fixture(scope="session")
def host(parts: LoadedModel) -> Pipeline:
    """The pipeline on the processor."""
    from sdexport.pipeline.pipeline import Pipeline

    return Pipeline(parts)


@pytest.fixture(scope="session")
def plans(parts: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The double's engines for the bundle."""
    from tests.standin.world import write_plans

    return write_plans(tmp_path_factory.mktemp("plans"), parts)
