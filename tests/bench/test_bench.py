"""Comparing bundles and writing the page about them."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.compare import CompareConfig, compare
from bench.report import ReportConfig, curve, report
from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, UsageError
from kdc_edge.files import write_json


def test_a_bundle_against_itself_is_as_fast(hand_bundle: Path, tmp_path: Path) -> None:
    data = compare(CompareConfig(hand_bundle, hand_bundle, samples=30, output=tmp_path / "timings.json"))
    assert set(data["results"]) == {"text_encoder", "unet", "vae_decoder", "picture"}
    assert data["bundles"]["a"]["id"] == Bundle.open(hand_bundle).id
    assert json.loads((tmp_path / "timings.json").read_text()) == data
    result = data["results"]["unet"]
    assert len(result["a"]["wall_s"]) == len(result["b"]["wall_s"]) == 30
    assert result["low"] <= result["ratio"] <= result["high"]
    assert 0.4 < result["ratio"] < 2.5


def test_too_few_samples_for_an_interval(hand_bundle: Path) -> None:
    with pytest.raises(UsageError, match="at least 3"):
        compare(CompareConfig(hand_bundle, hand_bundle, samples=2))


class Page(HTMLParser):
    """The tags that must close, the pictures, and every address a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "polyline"):
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag: str) -> None:
        if tag != "polyline":
            assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(hand_bundle: Path, tmp_path: Path) -> None:
    from PIL import Image

    compare(CompareConfig(hand_bundle, hand_bundle, samples=3, output=tmp_path / "timings.json"))
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    losses = {"steps": [25, 50], "terms": {"task": [1.0, 0.1], "out": [0.5, 0.05]}, "seconds": 12.0}
    write_json(tmp_path / "kdc.json", {"recipe": "distill/kdc-small", "losses": losses})
    config = ReportConfig(
        (hand_bundle, hand_bundle),
        tmp_path / "report.html",
        (tmp_path / "a.png",) * 2,
        tmp_path / "timings.json",
        tmp_path,
        "a <title>",
    )
    report(config)
    text = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == [] and len(page.fetched) == 2
    assert all(address.startswith("data:image/png;base64,") for address in page.fetched)
    assert "a &lt;title&gt;" in text and "distill/kdc-small" in text and "not measured" in text


def test_the_curve_falls_where_the_loss_does() -> None:
    points = re.findall(r'points="([^"]+)"', curve([1, 2, 3], {"task": [1.0, 0.1, 0.01]}))[0].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights[0] < heights[1] < heights[2]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)


def test_pictures_and_bundles_must_match(hand_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one picture per bundle"):
        report(ReportConfig((hand_bundle,), tmp_path / "r.html", (tmp_path / "a.png",) * 2))
    with pytest.raises(BundleError, match="no such folder"):
        report(ReportConfig((tmp_path / "nothing",), tmp_path / "r.html"))
    assert not (tmp_path / "r.html").exists()
