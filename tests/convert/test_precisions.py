"""docs/quantization.md's table of emoji-64: every row is made again by the command that stands above it."""

import re
import shlex
from pathlib import Path

import pytest

from convert.onnx import main
from kdc_edge.bundle import Bundle
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
COMMANDS = dict(re.findall(r"^python -m convert\.onnx (.*) -o runs/precisions/(\S+)$", TEXT, re.M))
ROWS = dict(re.findall(r"^\| ([\w-]+)(?:, \d+ MiB)? \| ([\d.]+ \| [\d.]+) dB \| .* dB \|", TEXT, re.M))


def test_every_row_has_its_command():
    assert list(COMMANDS.values()) == list(ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMMANDS, ids=COMMANDS.values())
def test_a_row_is_made_again(arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(arguments), "-o", str(tmp_path / "bundle")])
    assert ended.value.code == 0  # floors are the converter's
    bundle = Bundle.open(tmp_path / "bundle")
    megabytes, snr_db = map(float, ROWS[COMMANDS[arguments]].split(" | "))
    size = sum(entry.bytes for entry in bundle.manifest.files.values()) / 1e6
    took, found = bundle.report["conversion"]["unet"], bundle.report["parity"]["unet"]["snr_db"]
    print(
        f"\n{size:.1f} MB, {found:.1f} dB, {took['seconds']:.0f} s, {took['peak_mib']:.0f} MiB, {len(took['left'])} left"
    )
    assert size == pytest.approx(megabytes, rel=0.05)
    assert found == pytest.approx(snr_db, abs=2)
