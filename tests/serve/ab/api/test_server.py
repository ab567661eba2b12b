"""What the process sets up for itself."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from serve.ab.api.server import raise_open_files


@pytest.fixture
def few_files() -> Iterator[int]:
    """The hard limit; the soft one is lower meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_it_may_open_as_many_files_as_the_system_allows(few_files: int) -> None:
    raise_open_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (few_files, few_files)
