from pathlib import Path

import pytest

from tests.toy.prepared import write_prepared


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy method's prepared folder; copy it before damaging it."""
    return write_prepared(tmp_path_factory.mktemp("toy") / "prepared")
