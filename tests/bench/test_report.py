"""`bench report`: the page is whole, answers its questions, fetches nothing, and is drawn in a real browser."""

import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bench import record, verdict
from bench.charts import trends, waterfall
from bench.history import HistoryConfig, history
from bench.report import ReportConfig, report
from bench.roofline import shipped
from bench.shown import golden
from bench.subjects import gather, machines
from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, UsageError
from kdc_edge.files import read_json, write_json
from kdc_edge.pipeline import DEFAULT_BUNDLE
from tests.bench import browser
from tests.bench.records import BASELINE, made, write
from tests.kdc_edge import builders

VOID = ("meta", "img", "br")


class Page(HTMLParser):
    """The tags that must close, the texts by section, and every address a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.sections: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.sections.append(given["id"] or "")
        self.fetched += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def card(value: float, better: str = "higher", half: float = 0.05) -> dict:
    number = {"value": value, "low": value - half, "high": value + half, "count": 256, "better": better}
    return {"cards": [{"prompts": "emoji-64.tar:trained", "kind": "bundle", "numbers": {"by_text_top1": number}}]}


@pytest.fixture
def everything(tmp_path: Path) -> ReportConfig:
    """A page with every section: a bundle with pictures, records of several, a history, a training curve."""
    runs = [made(day, "a", 1 + (day > 6) * 0.3, quality=card(0.75), revision="0123456789" * 4) for day in range(12)]
    runs += [made(day, "b", 5.0, quality=card(0.8)) for day in range(4)]
    write(tmp_path / "runs", runs)
    history(HistoryConfig((tmp_path / "runs", BASELINE), tmp_path / "history.sqlite"))
    losses = {"steps": [25, 50], "terms": {"task": [1.0, 0.1], "out": [0.5, 0.05]}, "seconds": 12.0}
    write_json(tmp_path / "kdc.json", {"recipe": "distill/kdc-small", "losses": losses})
    return ReportConfig(
        sources=(DEFAULT_BUNDLE, BASELINE, tmp_path / "runs"),
        output=tmp_path / "report.html",
        device=("iphone-14,galaxy-s25", "raspberry-pi-5"),
        history=tmp_path / "history.sqlite",
        training=tmp_path,
        title="a <title>",
    )


def written(config: ReportConfig) -> str:
    report(config)
    return config.output.read_text(encoding="utf-8")


def test_the_page_is_whole_and_fetches_nothing(everything: ReportConfig) -> None:
    text = written(everything)
    page = Page(text)
    assert page.open == []
    assert page.sections == [
        *("answer", "pictures", "tradeoff", "latency", "waterfall", "memory", "quality", "parity", "devices", "trends"),
        *("training", "reproduce"),
    ]
    outside = [a for a in page.fetched if not a.startswith(("data:image/", "#"))]
    assert outside == []
    assert len([a for a in page.fetched if a.startswith("data:image/png")]) == 2
    assert "default-src 'none'" in text and "a &lt;title&gt;" in text


def test_it_answers_which_bundle_how_fast_how_big_how_good_how_sure(everything: ReportConfig) -> None:
    text = written(everything)
    answer = re.search(r'<section id="answer">(.*?)</section>', text, re.DOTALL).group(1)
    cards = answer.split("<article")[1:]
    assert [re.search('class="state [a-z]+">([a-z]+)<', each).group(1) for each in cards] == ["measured"] + 3 * [
        "estimated"
    ]
    assert (
        "bundle-a int8-weights" in cards[0]
        and "the fastest; quality cannot be told from the best one&#x27;s, as of 2 in all" in cards[0]
    )
    slowest = 1.3 * np.median(read_json(BASELINE)["latency"]["picture"]["warm_wall_s"])
    assert (
        f"{1000 * slowest:.1f} ms" in cards[0] and "12.9 MB" in cards[0] and "75% [70%, 80%], 256 pictures" in cards[0]
    )
    assert "timed there, 10 pictures" in cards[0] and "at least this long" in cards[3]
    assert read_json(BASELINE)["command"] in text, "the exact command"


def test_a_browser_draws_every_chart_without_a_complaint(everything: ReportConfig, tmp_path: Path) -> None:
    browser.find()
    report(everything)
    seen, console = browser.look(everything.output, tmp_path)
    assert console == []
    charts = ("tradeoff", "latencies", "waterfall", "memory", "trajectory", "trends", "training")
    assert [each.charts for each in seen] == [charts, charts]
    assert [each.beyond for each in seen] == [0, 0], "nothing sticks out to the side"


def test_the_browser_would_have_complained_of_a_request(everything: ReportConfig, tmp_path: Path) -> None:
    """That the page asks for nothing is worth something only if asking were seen."""
    browser.find()
    text = written(everything).replace("</h1>", '</h1><img src="http://127.0.0.1:9/x.png">', 1)
    asking = tmp_path / "asking.html"
    asking.write_text(text, encoding="utf-8")
    _, console = browser.look(asking, tmp_path)
    assert any("Content Security Policy" in line for line in console)


def test_twenty_runs_of_ten_bundles_take_five_seconds_and_five_megabytes(tmp_path: Path) -> None:
    runs = [
        made(day, letter, 1 + i / 3, quality=card(0.5 + i / 30))
        for i, letter in enumerate("abcdefghij")
        for day in range(20)
    ]
    write(tmp_path / "runs", runs)
    start = time.process_time()
    data = report(ReportConfig((tmp_path / "runs",), tmp_path / "r.html", device=("iphone-14", "raspberry-pi-5")))
    assert time.process_time() - start < 5
    assert (tmp_path / "r.html").stat().st_size < 5e6 and len(data["bundles"]) == 10


def chosen(*found: tuple[str, float, float | None], half: float = 0.05) -> verdict.Choice:
    """Of bundles (letter, seconds, quality)."""
    cells = []
    for letter, seconds, worth in found:
        quality = {} if worth is None else {"quality": card(worth, half=half)}
        subject = replace(SUBJECT, about={"id": letter, "bytes": ord(letter)}, cards=verdict_cards(quality))
        cells.append(verdict.Cell(subject, "here", "measured", seconds))
    return verdict.choose(cells, "trained.by_text_top1")


def verdict_cards(quality: dict) -> dict:
    return {"trained.by_text_top1": quality["quality"]["cards"][0]["numbers"]["by_text_top1"]} if quality else {}


SUBJECT = gather((BASELINE,), ())[0]


def test_the_fastest_of_those_as_good_as_the_best_is_chosen() -> None:
    assert chosen(("a", 9, 0.80), ("b", 3, 0.74), ("c", 1, 0.50)).cell.subject.id == "b"
    assert chosen(("a", 9, 0.80), ("b", 3, 0.74), half=0.01).cell.subject.id == "a"
    assert chosen(("a", 9, 0.80), ("b", 3, None)).why == "the only one whose quality was measured"
    smaller = chosen(("b", 3, 0.8), ("a", 3.1, 0.8), ("0", 3.3, 0.8))
    assert smaller.cell.subject.id == "a" and smaller.speed == "the smallest of 2 as fast"
    unknown = chosen(("a", 9, None), ("b", 3, None))
    assert unknown.cell.subject.id == "b" and "quality was not measured" in unknown.why


def test_the_front_holds_what_nothing_beats() -> None:
    assert verdict.front([(1, 9), (5, 5), (6, 6), (9, 1), (5, 5)]) == [True, True, False, True, True]


def test_the_quality_figure_is_the_one_that_most_bundles_have() -> None:
    some = [replace(SUBJECT, cards={"t.kid": {}, "t.clip": {}}), replace(SUBJECT, cards={"t.kid": {}})]
    assert verdict.figure(some) == "t.kid" and verdict.figure([SUBJECT]) is None
    assert verdict.figure([replace(SUBJECT, cards={"t.kid": {}, "t.by_text_top1": {}})]) == "t.by_text_top1"


def test_a_waterfall_ends_where_the_picture_does() -> None:
    bars = waterfall([SUBJECT], {SUBJECT.records[0].place: "here"})
    assert [bar["part"] for bar in bars] == ["text encoder", "U-Net", "decoder", "rest"]
    assert all(a["end"] == b["start"] for a, b in pairwise(bars))
    assert bars[-1]["end"] == pytest.approx(1e3 * record.read(BASELINE).latency["picture"].samples.p50)
    assert bars[1]["end"] - bars[1]["start"] == pytest.approx(
        1e3 * 4 / 2 * SUBJECT.records[0].latency["unet"].samples.p50
    )


def test_trends_join_the_history_and_mark_the_change(everything: ReportConfig) -> None:
    subjects = gather(everything.sources, ())
    found = {(t["bundle"], t["figure"]): t["points"] for t in trends(subjects, [], {})}
    points = found["bundle-a int8-weights", "a picture"]
    assert [i for i, point in enumerate(points) if point["changed"]] == [7]
    assert len(points) == 12 and ("emoji-64 int8-weights", "a picture") not in found, "one run is no trend"


def test_another_number_of_threads_is_another_place() -> None:
    """One thread and four of one machine are neither one device nor one series."""
    one = record.read(BASELINE)
    four = replace(one, created="2026-11-26T00:00:00+00:00", settings=replace(one.settings, threads=4))
    subject = replace(SUBJECT, records=(one, four))
    assert list(machines([subject])) == [one.place, four.place]
    assert subject.latest(one.place) is one and subject.latest(four.place) is four


def test_estimates_are_never_called_measured(everything: ReportConfig) -> None:
    cells = verdict.cells(gather(everything.sources, ()), shipped(), ["iphone-14"])
    states = {device: {cell.state for cell in row} for device, row in cells.items()}
    assert states["iphone-14"] == {"estimated"} and "measured" in states[SUBJECT.records[0].place]


def test_what_was_not_measured_says_so(hand_bundle: Path, tmp_path: Path) -> None:
    text = written(ReportConfig((hand_bundle, hand_bundle), tmp_path / "r.html", device=("iphone-14",)))
    assert text.count(Bundle.open(hand_bundle).id) == 1, "a bundle named twice is there once"
    assert text.count("not measured") > 5
    assert "No pictures of hand fp32: there are no golden pictures in the bundle." in text


def test_prompts_are_drawn_by_every_bundle_with_one_noise(hand_bundle: Path, tmp_path: Path) -> None:
    other = builders.write_bundle(tmp_path / "other", replace(builders.SPEC, guidance=1.0))
    text = written(ReportConfig((hand_bundle, other), tmp_path / "r.html", prompts=("red apple", ""), seed=5))
    assert re.findall(r"<small>seed (\d)</small>", text) == ["5", "6"]
    assert text.count("data:image/png;base64,") == 4 and "(empty prompt)" in text


def test_two_bundles_of_one_name_are_told_apart(hand_bundle: Path, tmp_path: Path, capsys) -> None:
    other = builders.write_bundle(tmp_path / "other", replace(builders.SPEC, guidance=1.0))
    text = written(ReportConfig((hand_bundle, other), tmp_path / "r.html"))
    for path in (hand_bundle, other):
        assert f"hand fp32 {Bundle.open(path).id[:8]}" in text
    assert "2 bundles are called hand fp32" in capsys.readouterr().err


def test_damaged_golden_pictures_are_told(tmp_path: Path) -> None:
    """Files that are what the manifest says, and make no sense."""
    folder = builders.write_bundle(tmp_path / "b")
    (folder / "golden").mkdir()
    (folder / "golden" / "golden.json").write_text("{}", encoding="utf-8")
    (folder / "golden" / "vectors.safetensors").write_bytes(b"nothing")
    builders.seal(folder, builders.manifest())
    (subject,) = gather((folder,), ())
    assert "cannot be read" in golden(subject).missing


def test_what_cannot_be_reported_writes_nothing(everything: ReportConfig, tmp_path: Path) -> None:
    write(tmp_path / "new", [made(1)])
    write_json(tmp_path / "new" / "0000.json", read_json(tmp_path / "new" / "0000.json") | {"format": 7})
    (tmp_path / "empty").mkdir()
    write_json(tmp_path / "empty.kdc" / "kdc.json", {"recipe": "made elsewhere"})
    (tmp_path / "broken.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    for changes, kind, complaint in [
        ({"sources": ()}, UsageError, "nothing to report on"),
        ({"sources": (tmp_path / "empty",)}, UsageError, "no records of bench run"),
        ({"sources": (tmp_path / "new",)}, BundleError, "format 7, this kdc-edge reads 1"),
        ({"sources": (tmp_path / "nothing",)}, BundleError, "no such file"),
        ({"device": ("iphone-41",)}, UsageError, "did you mean 'iphone-14'"),
        ({"history": tmp_path / "broken.sqlite"}, BundleError, "damaged.*is a copy"),
        ({"training": tmp_path / "empty.kdc"}, UsageError, "no losses to show"),
        ({"cards": (BASELINE,)}, BundleError, "field"),
        ({"history": tmp_path / "nothing.sqlite"}, UsageError, "no such history"),
    ]:
        with pytest.raises(kind, match=complaint):
            report(replace(everything, **changes))
    assert not everything.output.exists()


def test_a_page_that_is_there_stays_unless_forced(everything: ReportConfig) -> None:
    everything.output.write_text("mine")
    with pytest.raises(UsageError, match="pass --force"):
        report(everything)
    assert everything.output.read_text() == "mine"
    report(replace(everything, force=True))
    assert everything.output.read_text() != "mine"


def test_nothing_in_the_data_ends_its_script(tmp_path: Path) -> None:
    evil = made(bundle="a")
    evil = replace(evil, bundle=evil.bundle | {"name": "</script><img src=x>"})
    (path,) = write(tmp_path / "runs", [evil])
    page = Page(written(ReportConfig((path,), tmp_path / "r.html")))
    assert page.open == [] and "x" not in page.fetched


def test_the_charts_library_is_what_its_list_says() -> None:
    import hashlib

    import bench

    folder = Path(bench.__file__).parent / "vendor"
    listed = dict(reversed(line.split()) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert {path.name for path in folder.glob("*.js")} == set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
