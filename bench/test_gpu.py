"""On a CUDA device: the 482M student against the 859M teacher in PyTorch, and the shipped student's typed ONNX.

    pytest bench/test_gpu.py -m gpu -s      # writes runs/gpu/*.json

Random weights in the shapes of Stable Diffusion 1.x, latents of 64×64. A data-centre's card says nothing of an edge device's
latency: each record names its device and says so.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.side import Side
from convert import tensorrt
from kdc_edge import machine, timing
from kdc_edge.bundle import Bundle
from kdc_edge.differences import snr_db
from kdc_edge.errors import MissingBackend
from kdc_edge.files import write_json
from kdc_edge.pipeline import COMPONENTS
from kdc_edge.runtimes import Options, open_runtime
from tests.train.test_student import SD1
from train.student import from_config, prune_config
from train.student_spec import STUDENTS
from train.trainer import seeded

RUNS = Path(__file__).resolve().parents[1] / "runs" / "gpu"
FEWSTEP = Path(__file__).resolve().parents[1] / "assets" / "emoji-64" / "fewstep"
SIDE, SAMPLES = 64, 30
NOT_EDGE = "of this device alone; nothing follows for the latency of an edge device"
MODES = ("eager", "compiled", "graph")
gpu = pytest.mark.gpu
Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """How both networks are run."""

    mode: str
    dtype: torch.dtype
    batch: int

    @property
    def name(self) -> str:
        return f"{self.mode}-{str(self.dtype).removeprefix('torch.')}-batch{self.batch}"


CASES = [Case(mode, dtype, batch) for mode in MODES for dtype in (torch.float16, torch.bfloat16) for batch in (1, 2)]


def unets() -> tuple[Any, Any]:
    teacher = SD1 | {"sample_size": SIDE}
    student = prune_config(teacher, STUDENTS["kdc-small"]())
    return seeded(0, lambda: from_config(teacher)).eval(), seeded(0, lambda: from_config(student)).eval()


@pytest.fixture(scope="module")
def networks() -> Iterator[tuple[Any, Any]]:
    """Teacher and student, in the memory of the host."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch.cuda.is_available() says no")
    yield unets()


def ready(network: Any, case: Case, device: str) -> Call:
    """One call of the network on the device, waited for."""
    network = network.to(device, case.dtype)
    make = partial(torch.randn, device=device, dtype=case.dtype, generator=torch.Generator(device).manual_seed(0))
    channels, width = network.config.in_channels, network.config.cross_attention_dim
    side = network.config.sample_size
    x, text = make((case.batch, channels, side, side)), make((case.batch, 77, width))
    step = torch.tensor(500, device=device)
    function = torch.compile(network) if case.mode == "compiled" else network
    call: Call = partial(function, x, step, encoder_hidden_states=text, return_dict=False)
    if case.mode == "graph":
        call = captured(call)

    def waited() -> None:
        call()
        if device != "cpu":
            torch.cuda.synchronize()

    return waited


def captured(call: Call) -> Call:
    """As one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@torch.inference_mode()
def measure(networks: tuple[Any, Any], case: Case, device: str, samples: int) -> dict[str, Any]:
    """Teacher and student in turns: raw seconds, median, p95, peak memory of each alone, and the ratio with its interval."""
    peaks, calls = [], []
    for network in networks:
        network.to("cpu")  # so that its weights count
        if device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        held = 0 if device == "cpu" else torch.cuda.memory_allocated()
        calls.append(ready(network, case, device))
        calls[-1]()
        peaks.append("not measured" if device == "cpu" else (torch.cuda.max_memory_allocated() - held) / 2**20)
    taken = timing.turns(calls, warmup=3, samples=samples)
    ratio, low, high = timing.ratio_interval(taken[1].of("wall"), taken[0].of("wall"), seed=0)
    rows = {
        name: {"seconds": list(t.wall), "p50_s": t.p50, "p95_s": t.quantile(0.95), "peak_mib": peak}
        for name, t, peak in zip(("teacher", "student"), taken, peaks, strict=True)
    }
    return {"case": case.name, **rows, "teacher_over_student": {"ratio": ratio, "low": low, "high": high}}


def written(folder: Path, name: str, found: dict[str, Any], device: str) -> dict[str, Any]:
    about = {
        "format": 1,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if device != "cpu" else machine.processor(),
        "says": NOT_EDGE,
        "machine": machine.describe(),
        "versions": machine.versions(("torch", "diffusers", "onnxruntime-gpu", "tensorrt")),
        "revision": machine.revision(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", about | found)
    return about | found


@gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_student_is_faster_and_smaller(networks: tuple[Any, Any], case: Case) -> None:
    found = written(RUNS, case.name, measure(networks, case, "cuda", SAMPLES), "cuda")
    ratio, ms = found["teacher_over_student"], {name: found[name]["p50_s"] * 1e3 for name in ("teacher", "student")}
    print(
        f"\n{found['device']}, {case.name}, {SAMPLES} samples: teacher {ms['teacher']:.1f} ms, student "
        f"{ms['student']:.1f} ms, {ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times as fast"
    )
    assert ratio["low"] > 1
    assert found["student"]["peak_mib"] < found["teacher"]["peak_mib"]


ENGINES = [("ort", "cuda"), ("ort", "tensorrt"), ("tensorrt", None)]


@gpu
@pytest.mark.parametrize(("runtime", "provider"), ENGINES, ids=["onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"])
def test_the_shipped_student_on_the_device(runtime: str, provider: str | None, tmp_path: Path) -> None:
    """Answers as its graph does on a CPU, then its seconds; fp16."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch.cuda.is_available() says no")
    with pytest.raises(SystemExit) as ended:
        tensorrt.main(["--model", str(FEWSTEP), "-o", str(tmp_path / "bundle")])
    assert ended.value.code == 0
    bundle, options = Bundle.open(tmp_path / "bundle"), Options(provider=provider, cache_dir=tmp_path / "cache")
    try:
        side = Side.open(bundle, runtime, options)
    except MissingBackend as error:
        pytest.skip(str(error))
    with side:
        found: dict[str, Any] = {
            "bundle": bundle.id,
            "runtime": runtime,
            "provider": provider,
            "snr_db": {},
            "latency": {},
        }
        for name in COMPONENTS:
            found["snr_db"][name] = agreement(bundle, name, side)
            taken = timing.measure(side.call(name), warmup=5, samples=SAMPLES)
            found["latency"][name] = {"seconds": list(taken.wall), "p50_s": taken.p50, "p95_s": taken.quantile(0.95)}
        side.check()
    written(RUNS, f"{runtime}-{provider}", found, "cuda")
    for name, db in found["snr_db"].items():
        print(f"\n{runtime} {provider} {name}: {db:.1f} dB to the CPU, {found['latency'][name]['p50_s'] * 1e3:.2f} ms")
        assert db >= bundle.report["parity"][name]["floor_db"]


def agreement(bundle: Bundle, component: str, side: Side) -> float:
    """Decibels to the same graph on the CPU, on one call."""
    feed = side.feed(component)
    out, cpu = side.pipeline.components[component](**feed), open_runtime(bundle, component, "emulated")
    try:
        return min(snr_db(wanted, out[name]) for name, wanted in cpu(**feed).items())
    finally:
        cpu.close()


def test_the_measuring_itself_on_a_cpu(tmp_path: Path) -> None:
    """With U-Nets of a few thousand weights, so that what waits for a GPU is known to run."""
    small = SD1 | {"block_out_channels": (8, 16), "sample_size": 8, "cross_attention_dim": 8, "norm_num_groups": 4}
    small |= {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "mid_block_type": None,
        "attention_head_dim": 2,
    }
    small |= {"layers_per_block": 1, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    networks = from_config(small | {"layers_per_block": 2}).eval(), from_config(small).eval()
    case = Case("eager", torch.float32, 2)
    found = written(tmp_path, case.name, measure(networks, case, "cpu", 5), "cpu")
    assert len(found["teacher"]["seconds"]) == 5 and found["student"]["p95_s"] >= found["student"]["p50_s"] > 0
    assert found["teacher_over_student"]["low"] <= found["teacher_over_student"]["ratio"]
    assert found["student"]["peak_mib"] == "not measured" and found["says"] == NOT_EDGE
    assert (tmp_path / "eager-float32-batch2.json").exists()
