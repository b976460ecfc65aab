"""Recorded cases: checkpoints, inputs and expected numbers of the authors' code.

`HF_SSL_GOLDEN` names the directory that holds them, `<method>/<case>/case.json` and its files beside it; unset, the copy
that comes with the tests. Everything about a case is read from its files, so new cases can be dropped in.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..device import DEVICE


GOLDEN = Path(os.environ.get("HF_SSL_GOLDEN") or Path(__file__).parents[1] / "fixtures" / "golden")


@dataclass(frozen=True)
class Case:
    """One recorded case."""

    folder: Path

    @cached_property
    def info(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return load_file(self.folder / "inputs.safetensors", device=DEVICE)

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return load_file(self.folder / "expected.safetensors", device=DEVICE)

    def has(self, group: str) -> bool:
        """Whether anything was recorded under a name that begins so; a case need not have every group."""
        return any(key.startswith(group) for key in self.expected)

    def need(self, group: str) -> None:
        """Skip a test whose group of numbers this case does not have."""
        if not self.has(group):
            pytest.skip(f"{self.folder.name} records no {group}")

    def __str__(self) -> str:
        return self.folder.name


def find_cases(method: str, **wanted: str) -> list[Case]:
    """The cases of a method whose case.json has the wanted values; none if the directory holds other methods only."""
    if not any(GOLDEN.glob("*/*/case.json")):
        raise FileNotFoundError(f"There are no recorded cases under {GOLDEN}; check HF_SSL_GOLDEN.")
    cases = [Case(path.parent) for path in sorted((GOLDEN / method).glob("*/case.json"))]
    return [case for case in cases if all(case.info.get(key) == value for key, value in wanted.items())]


def assert_close(actual: Tensor, expected: Tensor, *, rel: float = 0.0, abs: float = 0.0, name: str = "") -> None:
    """Largest difference at most `abs` + `rel` times the largest expected magnitude."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return
    error = (actual.double() - expected.to(actual.device).double()).abs().max().item()
    bound = abs + rel * expected.double().abs().max().item()
    assert error <= bound, f"{name}: off by {error:.3g}, allowed {bound:.3g}"


def assert_equal(actual: Tensor, expected: Tensor, name: str = "") -> None:
    """Same shape, same values."""
    assert torch.equal(actual, expected.to(actual)), f"{name} differs"
