"""The mil runtime behind this project's ports, and its commands: what runs, what is refused, and with which exit code."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdc_edge import cli
from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, MissingBackend
from kdc_edge.manifest import Component
from kdc_edge.ports import COMPONENTS
from kdc_edge.runtimes import RUNTIMES, Options, mil, open_runtime
from kdc_edge.torch_ref.quiet import silent
from tests.kdc_edge import builders

with silent():
    pytest.importorskip("coremltools", reason="coremltools is not installed; pip install 'kdc-edge[coreml]'")

from tests.torch_ref.mil_network import by_hand

SIZES = {"channels": 4, "height": 4, "width": 4, "tokens": 7, "text_width": 8}
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
KERNEL = np.random.RandomState(0).standard_normal((4, 4, 3, 3)).astype(np.float32)


def body(mb: Any, sample: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
    """conv(sample) + timestep + mean of the text."""
    text = mb.reduce_mean(x=encoder_hidden_states, axes=[1, 2, 3], keep_dims=True)
    time = mb.reshape(x=timestep, shape=[-1, 1, 1, 1])
    return mb.add(x=mb.add(x=mb.conv(x=sample, weight=KERNEL, pad_type="same"), y=time), y=text, name="noise_pred")


@pytest.fixture
def make(tmp_path: Path) -> Callable[[int], Bundle]:
    """`make(batch)`: a bundle of a U-Net whose package takes so many rows."""

    def build(batch: int) -> Bundle:
        shapes = {"sample": (batch, 4, 4, 4), "timestep": (batch,), "encoder_hidden_states": (batch, 8, 1, 7)}
        folder = tmp_path / "bundle"
        by_hand(folder / "Resources/Unet.mlpackage", shapes, body)
        files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        ports = COMPONENTS["unet"].bind(SIZES)
        unet = Component(tuple(files), ports.inputs, ports.outputs, 1, options={"batch": batch})
        return Bundle(folder, replace(builders.manifest(), runtime="coreml", components={"unet": unet}, files={}), "id")

    return build


def feed(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.RandomState(1)
    sample, text = rng.standard_normal((rows, 4, 4, 4)), rng.standard_normal((rows, 7, 8))
    arrays = {"sample": sample, "timestep": np.asarray(3.0), "encoder_hidden_states": text}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (1, 3), (2, 2), (2, 3)])
def test_rows_are_called_as_many_at_a_time_as_the_package_takes(batch: int, rows: int, make):
    runtime = open_runtime(make(batch), "unet", "mil", Options(threads=1))
    inputs = feed(rows)
    found = runtime(**inputs)["out_sample"]
    runtime.close()
    padded = np.pad(inputs["sample"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    wanted = (
        np.einsum("bihwyx,oiyx->bohw", windows, KERNEL)
        + 3
        + inputs["encoder_hidden_states"].mean((1, 2))[:, None, None, None]
    )
    assert found.shape == (rows, 4, 4, 4)
    assert np.allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_what_it_is_and_where_it_runs(make):
    bundle = make(1)
    assert not RUNTIMES["mil"].measured
    assert mil.available() == ["cpu"]
    assert mil.placement(bundle, "unet", Options()) == {"cpu": 5}
    with pytest.raises(MissingBackend, match="mil has no ane"):
        open_runtime(bundle, "unet", "mil", Options(provider="ane"))
    open_runtime(bundle, "unet", "mil", Options(provider="ane", allow_fallback=True)).close()


def test_a_weight_file_that_is_missing_is_named(make):
    bundle = make(1)
    shutil.rmtree((bundle.path / "Resources/Unet.mlpackage" / WEIGHTS).parent)
    with pytest.raises(BundleError, match=r"weight\.bin: missing"):
        open_runtime(bundle, "unet", "mil")


def run(main: Callable[[list[str]], object], *arguments: object) -> int | str | None:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return done.value.code


def test_a_package_is_listed_and_its_ranges_are_shown(make, capsys: pytest.CaptureFixture[str]):
    package = make(1).path / "Resources/Unet.mlpackage"
    assert run(mil.main, package, "--list-ops") == 0
    shown = capsys.readouterr().err.split("\n")
    assert [line.split() for line in shown if line] == [
        ["2", "add"],
        ["1", "conv"],
        ["1", "reduce_mean"],
        ["1", "reshape"],
    ]
    assert run(mil.main, package) == 0
    assert "5 operators, executed op by op, not by Core ML, in 3 calls" in capsys.readouterr().err


def test_verify_says_what_cannot_be_checked(
    make, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    package = make(1).path / "Resources/Unet.mlpackage"
    assert run(cli.main, "verify", package) == 0
    assert run(cli.main, "verify", package, "--against", tiny_checkpoint) == 2
    assert "name the checkpoint that the package was made from" in capsys.readouterr().err
    assert run(cli.main, "verify", tiny_checkpoint, "--against", tiny_checkpoint) == 2
    assert run(cli.main, "verify", tmp_path / "nothing.mlpackage") == 5
    (package / WEIGHTS).write_bytes((package / WEIGHTS).read_bytes()[:80])
    assert run(cli.main, "verify", package) == 5
    assert "convert it again" in capsys.readouterr().err
