"""Where the tests find real data and system programs; each test that is left out says why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what this machine lacks; in CI a lack is a failure, never a skip."""
    in_ci = os.environ.get("CI") == "true"
    for item in items:
        if item.get_closest_marker("data") and not os.environ.get("TRUESCALE_DATA") and not in_ci:
            item.add_marker(pytest.mark.skip(reason="TRUESCALE_DATA names no data folder"))
        for marker in item.iter_markers("program"):
            missing = [name for name in marker.args if shutil.which(name) is None]
            if missing and not in_ci:
                item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What runs remember of this machine stays out of the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; a test that uses it carries the marker `data`."""
    return Path(os.environ["TRUESCALE_DATA"]).resolve()
