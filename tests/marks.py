"""Which tests `make test` leaves to `make test-all`."""

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """A parameter set whose test takes long, and proves of another case what a faster test proves of one."""
    return pytest.param(*values, marks=pytest.mark.slow)
