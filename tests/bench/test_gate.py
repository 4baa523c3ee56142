"""The gate's three answers, its hard counters, and the processes that take turns."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import record, roof
from bench.gate import GateConfig, counter_regressions, find_base, gate, judge, time_both
from bench.run import RunConfig, run
from bench.visits import PAIRS, Tree, Work, Worker, visit
from kdc_edge import timing
from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, GateError, UsageError
from kdc_edge.files import read_json
from tests.kdc_edge import builders

CONFIG = GateConfig(Path("head"), "base")
NONE = timing.Samples((), (), 0)


def settled(low: float, high: float) -> timing.Settled:
    return timing.Settled(((NONE, NONE),) * 9, "wall", (low + high) / 2, low, high, 0.95, CONFIG.margin)


@pytest.mark.parametrize(
    ("same", "found", "outcome"),
    [
        ((0.99, 1.01), (0.995, 1.01), "pass"),
        ((0.99, 1.01), (0.90, 0.92), "pass"),
        ((0.99, 1.01), (1.005, 1.03), "pass"),
        ((0.99, 1.01), (1.016, 1.04), "regression"),
        ((0.99, 1.01), (0.98, 1.03), "inconclusive"),
        ((0.99, 1.01), (1.02, 1.08), "inconclusive"),
        ((1.02, 1.04), (0.995, 1.01), "inconclusive"),
        ((0.94, 0.97), (1.03, 1.05), "inconclusive"),
    ],
)
def test_three_answers(same: tuple[float, float], found: tuple[float, float], outcome: str) -> None:
    answer, advice = judge(settled(*same), settled(*found), CONFIG)
    assert answer == outcome
    assert bool(advice) == (outcome != "pass")


def test_counters_are_held_to_a_hundredth() -> None:
    base = {"unet": {"macs": 1000, "nodes": None, "bytes": 500}}
    assert counter_regressions({"unet": {"macs": 1010, "nodes": 7, "bytes": 400}}, base) == []
    (found,) = counter_regressions({"unet": {"macs": 1011, "nodes": 7, "bytes": 400}}, base)
    assert found == "unet macs rose from 1,000 to 1,011 (+1.1%)"


@pytest.fixture(scope="module")
def slow_tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """This revision with a U-Net that takes 20 ms longer."""
    root = tmp_path_factory.mktemp("slow")
    here = Tree.here().root / "kdc_edge"
    shutil.copytree(here, root / "kdc_edge", ignore=shutil.ignore_patterns("data", "__pycache__"))
    runtime = root / "kdc_edge" / "runtimes" / "ort.py"
    text = runtime.read_text(encoding="utf-8")
    planted = "        import time; time.sleep(0.02)\n        check(self.ports.inputs"
    assert text.count("        check(self.ports.inputs") == 1
    runtime.write_text(text.replace("        check(self.ports.inputs", planted), encoding="utf-8")
    return Tree(root)


def test_each_side_runs_its_own_revision(hand_bundle: Path, slow_tree: Tree) -> None:
    a, b = visit((hand_bundle, Tree.here()), (hand_bundle, slow_tree), 1, Work("unet", 4, 1, 0))
    assert np.median(b.wall) > 0.02 > np.median(a.wall)
    assert len(a.wall) == len(b.cpu) == PAIRS


def test_a_planted_slow_down_is_found_and_the_same_code_passes(
    hand_bundle: Path, slow_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes on the hand-made bundle; a margin as wide as a busy test machine needs."""
    monkeypatch.setattr(timing, "MIN_VISITS", 3)
    config = GateConfig(hand_bundle, str(hand_bundle), margin=0.9, clock="wall", output=tmp_path / "gate.json")
    assert gate(config)["outcome"] == "pass"
    data = read_json(tmp_path / "gate.json")
    assert data["times"]["head_against_base"]["conclusive"] and len(data["times"]["base_against_itself"]["visits"]) >= 3
    entrants = (hand_bundle, slow_tree), (hand_bundle, Tree.here())
    same, found = time_both(*entrants, replace(config, budget=1.0))
    assert found.low > 1.9 and judge(same, found, replace(config, margin=0.9))[0] != "pass"


def test_what_cannot_be_told_is_red_unless_allowed(hand_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(timing, "MIN_VISITS", 2)
    config = GateConfig(hand_bundle, str(hand_bundle), margin=1e-6, budget=0.1)
    with pytest.raises(GateError, match="inconclusive: "):
        gate(config)
    assert gate(replace(config, allow_inconclusive=True))["outcome"] == "inconclusive"
    assert "\ninconclusive: " in capsys.readouterr().err


def test_a_record_holds_counters_alone(
    hand_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(roof, "COPY_BYTES", 1 << 20)
    (path,) = map(Path, run(RunConfig((hand_bundle,), tmp_path / "b", samples=3, threads=1))["records"])
    assert gate(GateConfig(hand_bundle, str(path)))["times"] == "not gated"
    assert "cannot take turns" in capsys.readouterr().err
    found = record.read(path)
    record.write(path, replace(found, fingerprint="elsewhere"))
    gate(GateConfig(hand_bundle, str(path)))
    assert "recorded on another machine" in capsys.readouterr().err
    smaller = {**found.bundle["counters"], "unet": {**found.bundle["counters"]["unet"], "parameters": 90}}
    record.write(path, replace(found, bundle={**found.bundle, "counters": smaller}))
    with pytest.raises(GateError, match="unet parameters rose from 90 to 100"):
        gate(GateConfig(hand_bundle, str(path)))


def test_a_revision_is_checked_out_with_its_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = builders.write_bundle(tmp_path / "repository" / "data" / "hand")
    root = tmp_path / "repository"
    shutil.copytree(
        Tree.here().root / "kdc_edge", root / "kdc_edge", ignore=shutil.ignore_patterns("data", "__pycache__")
    )
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for arguments in (("init", "-q"), ("add", "-A"), (*who, "commit", "-qm", "a")):
        subprocess.run(["git", *arguments], cwd=root, check=True)
    monkeypatch.chdir(root)
    with find_base("HEAD", bundle) as base:
        other, tree = base.entrant
        assert Bundle.open(other).id == Bundle.open(bundle).id and tree.root != root
        assert not base.why_not
    assert not tree.root.exists()
    with pytest.raises(UsageError, match="has none at its path"), find_base("HEAD", tmp_path / "elsewhere"):
        pass
    with pytest.raises(UsageError, match=r"no git revision: .*v0\.0"), find_base("v0.0", bundle):
        pass
    (root / "kdc_edge" / "__init__.py").write_text("raise RuntimeError('broken then')")
    builders.with_manifest(bundle, format=0)
    subprocess.run(["git", *who, "commit", "-qam", "b"], cwd=root, check=True)
    with find_base("HEAD", bundle) as base:
        assert base.entrant is None and "broken then" in base.why_not and base.counters == {}


def test_a_bundle_that_is_damaged_or_a_margin_that_is_none(hand_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        gate(GateConfig(tmp_path / "nothing", str(hand_bundle)))
    with pytest.raises(UsageError, match="must be above 0"):
        gate(GateConfig(hand_bundle, str(hand_bundle), margin=0))
    damaged = shutil.copytree(hand_bundle, tmp_path / "damaged")
    (damaged / "unet" / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="fetch the bundle again"):
        gate(GateConfig(hand_bundle, str(damaged)))


def test_a_worker_that_dies_says_why(hand_bundle: Path, tmp_path: Path) -> None:
    gone = (tmp_path / "gone", Tree.here())
    with pytest.raises(GateError, match=r"ended early: .*no such folder"), Worker(gone, Work("picture", 4, 1, 0)):
        pass
