"""Libraries load without the collector, which works on afterwards, also where one cannot be loaded."""

from __future__ import annotations

import gc

import pytest

from daemon.loading import loading


def test_the_collector_rests_while_modules_load_and_then_leaves_them_alone() -> None:
    before = gc.get_freeze_count()
    with loading():
        assert not gc.isenabled()
        module_like = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() - before >= len(module_like)


def test_the_collector_works_on_where_an_import_fails() -> None:
    with pytest.raises(ImportError), loading():
        import no_such_library  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()
