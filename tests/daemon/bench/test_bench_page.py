from daemon.bench.page import PATHS, SOUGHT, bench_page


def test_every_page_is_asked_for_and_timed() -> None:
    said: list[str] = []
    found = bench_page(jobs=200, rounds=2, say=said.append)
    assert set(found["median_ms"]) == set(found["first_ms"]) == {*PATHS, *SOUGHT}
    assert all(0 < ms <= found["worst_median_ms"] for ms in found["median_ms"].values())
    assert said
