import sys

import evaluate
import pytest


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory):
    """What `evaluate` copies and stores lies in a folder of its own."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder / "metrics")
        patch.syspath_prepend(folder / "modules")
        patch.delitem(sys.modules, "evaluate_modules", raising=False)
        yield
