"""KdcCore compiles and its XCTest cases pass, where Swift is; what they measure goes to the judge."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kdc_edge import conformance, golden
from kdc_edge.bundle import Bundle
from kdc_edge.pipeline import DEFAULT_BUNDLE

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("swift") is None, reason="no Swift toolchain: Debian 13's swiftlang, or Xcode")
def test_core(tmp_path: Path):
    build = Path(os.environ.get("KDC_SWIFT_BUILD", tmp_path / "build"))  # keep it to build less the next time
    results = build.parent / "results.json"
    command = ["swift", "test", "--package-path", ROOT / "apps" / "ios", "--scratch-path", build]
    env = {**os.environ, "KDC_RESULTS": str(results)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "with 0 failures" in done.stdout + done.stderr
    bundle = Bundle.open(DEFAULT_BUNDLE)
    app, arrays = conformance.read(results, bundle.id)
    verdicts = conformance.judge(golden.read(bundle), arrays)
    assert app == "the tests, fake"
    exact = [name for name, stage in conformance.STAGES.items() if stage.tolerance != "stored"]
    assert [verdict.stage for verdict in verdicts if verdict.state == "passed"] == exact
