from collections.abc import Callable
from pathlib import Path

import pytest
from tests import toys
from tests.erase.common import CONCEPT, quick

from unteach.diffusion import Model, WeightDelta, load
from unteach.erase import erase


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a toy pipeline; built once a session, never written to by a test."""
    root = tmp_path_factory.mktemp("toys")
    return lambda kind: toys.build(kind, root / kind)


@pytest.fixture(params=toys.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str, folder: Callable[[str], Path]) -> Model:
    return load(folder(kind))


@pytest.fixture
def sd(folder: Callable[[str], Path]) -> Model:
    return load(folder("sd"))


@pytest.fixture(scope="session")
def erased(folder: Callable[[str], Path]) -> Callable[[str, str], WeightDelta]:
    """The delta of a method on a toy, made once a session."""
    made: dict[tuple[str, str], WeightDelta] = {}

    def get(name: str, kind: str) -> WeightDelta:
        if (name, kind) not in made:
            made[name, kind] = erase(load(folder(kind)), CONCEPT, quick(name), seed=5)
        return made[name, kind]

    return get
