from pathlib import Path

import pytest

from .runs import uninterrupted


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The outcome of an uninterrupted run, by setting."""
    folder: Path = tmp_path_factory.mktemp("whole")
    return lambda setting: uninterrupted(setting, folder)
