from collections.abc import Callable
from pathlib import Path

import pytest
from tests import toys

from unteach.diffusion import Model, load


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a toy pipeline; built once a session, never written to by a test."""
    root = tmp_path_factory.mktemp("toys")
    return lambda kind: toys.build(kind, root / kind)


@pytest.fixture(params=toys.KINDS)
def model(request: pytest.FixtureRequest, toy: Callable[[str], Path]) -> Model:
    """A freshly loaded toy of each family and prediction type."""
    return load(toy(request.param))


@pytest.fixture
def sd(toy: Callable[[str], Path]) -> Model:
    return load(toy("sd"))
