"""A real Slurm on this machine, for all tests that need one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import Slurm, SlurmError, single_node


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """The cluster; where it cannot run the tests are left out with the reason, in CI they fail."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        try:
            running = single_node(Path(folder))
            cluster = running.__enter__()
        except SlurmError as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(str(error))
        try:
            yield cluster
        finally:
            running.__exit__(None, None, None)
