"""The bundle that comes with the package, as pytest-benchmark functions.

    pytest bench --benchmark-enable --benchmark-json runs/bench.json

In the ordinary test run each is called once, untimed.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from bench.side import WHAT, Side
from kdc_edge.pipeline import DEFAULT_BUNDLE
from kdc_edge.runtimes import Options


@pytest.fixture(scope="module")
def side() -> Iterator[Side]:
    pytest.importorskip("onnxruntime")
    with Side.open(DEFAULT_BUNDLE, "ort", Options(threads=1)) as opened:
        opened.check()
        yield opened


@pytest.mark.parametrize("what", WHAT)
def test_latency(benchmark: Any, side: Side, what: str) -> None:
    benchmark(side.call(what))


def test_open(benchmark: Any) -> None:
    pytest.importorskip("onnxruntime")
    benchmark(lambda: Side.open(DEFAULT_BUNDLE, "ort", Options(threads=1)).pipeline.close())
