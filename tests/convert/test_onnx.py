"""The ONNX converter: what is in a bundle, that it makes the reference's pictures, and that failing leaves nothing."""

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from convert import checks, golden
from convert import onnx as onnx_converter
from convert.onnx import OnnxConfig, convert
from convert.parity import snr_db
from kdc_edge import Bundle, Checkpoint, Pipeline
from kdc_edge.noise import gaussian
from kdc_edge.pipeline import COMPONENTS
from kdc_edge.ports import zeros
from kdc_edge.spec import FOLDERS
from kdc_edge.tokenizer import Tokenizer
from kdc_edge.torch_ref import macs
from kdc_edge.torch_ref.networks import load_network

BUNDLES = [("tiny_checkpoint", "tiny_bundle"), ("tiny_sd_checkpoint", "tiny_sd_bundle")]
LAYOUT = {
    "golden/golden.json", "golden/vectors.safetensors", "model_index.json", "scheduler/scheduler_config.json",
    "text_encoder/config.json", "text_encoder/model.onnx", "tokenizer/merges.txt", "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "unet/config.json", "unet/model.onnx",
    "vae_decoder/config.json", "vae_decoder/model.onnx",
}  # fmt: skip


@pytest.fixture(params=BUNDLES, ids=["emoji fp32", "SD fp16"])
def pair(request: pytest.FixtureRequest) -> tuple[Checkpoint, Bundle]:
    checkpoint, bundle = (request.getfixturevalue(name) for name in request.param)
    return Checkpoint.open(checkpoint), Bundle.open(bundle)


def test_a_bundle_says_what_it_is_and_where_it_came_from(pair: tuple[Checkpoint, Bundle]):
    checkpoint, bundle = pair
    manifest = bundle.manifest
    assert set(manifest.files) == LAYOUT
    assert manifest.provenance.checkpoint == checkpoint.id
    assert {"torch", "onnxruntime", "kdc-edge"} <= set(manifest.provenance.tools)
    assert 30 < manifest.requires.memory_mib < 2000
    assert (manifest.components["unet"].quantization is None) == (manifest.precision == "fp32")
    for component in manifest.components.values():
        assert component.parameters > 1000


def test_the_graph_costs_what_torch_counts_on_the_source_model(pair: tuple[Checkpoint, Bundle]):
    """Two independent counts: operators of the ONNX file, and FlopCounterMode with attention taken apart."""
    checkpoint, bundle = pair
    for name, component in bundle.manifest.components.items():
        inputs = {key: torch.from_numpy(zero) for key, zero in zeros(component.inputs, {"batch": 1}).items()}
        cost = macs.count(load_network(checkpoint, name), inputs)
        assert component.macs == pytest.approx(cost.macs, rel=1e-3)
        weights = sum(bundle.manifest.files[file].bytes for file in component.files)
        assert (
            component.bytes_moved > weights / 2 and component.operators["MatMul" if name != "vae_decoder" else "Conv"]
        )


def test_the_report_has_parity_pictures_and_what_it_took(pair: tuple[Checkpoint, Bundle]):
    report, floor = pair[1].report, {"fp32": 90, "fp16": 50}[pair[1].manifest.precision]
    assert set(report["parity"]) == set(COMPONENTS)
    for parity in report["parity"].values():
        assert parity["snr_db"] >= parity["floor_db"] == floor
    assert len(report["parity"]["unet"]["calls_db"]) == len(golden.PROMPTS) * golden.STEPS
    assert min(report["picture"]["psnr_db"]) > 40
    assert min(report["picture"]["luma_std"]) > 2 / 255
    for took in report["conversion"].values():
        assert took["seconds"] > 0
        assert took["peak_mib"] > 0
        assert took["estimated_mib"] > 0
    assert report["machine"]["cores"] >= 1


def test_the_card_names_every_file_with_its_hash(pair: tuple[Checkpoint, Bundle]):
    card = (pair[1].path / "README.md").read_text(encoding="utf-8")
    assert pair[1].id in card
    for name, entry in pair[1].manifest.files.items():
        assert f"| {name} | {entry.bytes:,} | `{entry.sha256}` |" in card


def test_plain_onnxruntime_loads_every_component_at_any_batch(pair: tuple[Checkpoint, Bundle]):
    for name, component in pair[1].manifest.components.items():
        session = onnxruntime.InferenceSession(pair[1].path / name / "model.onnx")
        assert [i.name for i in session.get_inputs()] == [port.name for port in component.inputs]
        assert [o.name for o in session.get_outputs()] == [port.name for port in component.outputs]
        for batch in (1, 3):
            outputs = session.run(None, zeros(component.inputs, {"batch": batch}))
            assert {out.shape[0] for out in outputs} == {batch}


def test_weights_go_by_their_names_in_the_checkpoint(pair: tuple[Checkpoint, Bundle]):
    checkpoint, bundle = pair
    for name in bundle.manifest.components:
        graph = onnx.load(bundle.path / name / "model.onnx").graph
        weights = {init.name: onnx.numpy_helper.to_array(init) for init in graph.initializer if "." in init.name}
        stored = {}
        for path in (checkpoint.path / FOLDERS[name]).glob("*.safetensors"):
            with safe_open(path, "numpy") as file:
                stored |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for key, weight in weights.items():
            source = stored[key.removesuffix(".T").removesuffix(".view")]
            wanted = source.T if key.endswith(".T") else source.reshape(weight.shape)
            np.testing.assert_allclose(weight, wanted, rtol=1e-3, atol=1e-6)
        assert sum(w.size for w in weights.values()) == bundle.manifest.components[name].parameters


def test_fp16_is_half_the_size_with_fp32_arithmetic(tiny_sd_bundle: Path):
    graph = onnx.load(tiny_sd_bundle / "unet" / "model.onnx").graph
    kinds = {init.name: init.data_type for init in graph.initializer if len(init.dims) > 1 and "." in init.name}
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT16}
    read_by = {name: {node.op_type for node in graph.node if name in node.input} for name in kinds}
    assert set().union(*read_by.values()) == {"Cast"}


def test_for_cuda_fp16_is_the_arithmetic(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Products read fp16, normalisations are fp32 islands, ports stay fp32; every tensor rounded, it is near PyTorch."""
    for module in (onnx_converter, checks):
        monkeypatch.setattr(module, "in_own_process", lambda _, fn, *args, **kwargs: fn(*args, **kwargs))
    settings = {"precision": "fp16", "target": "cuda", "components": ("unet",), "steps": 2, "any_size": True}
    report = convert(OnnxConfig(tiny_checkpoint, tmp_path / "bundle", **settings))
    assert report["parity_by"].startswith("emulated") and report["parity"]["unet"]["snr_db"] > 50
    bundle = Bundle.open(tmp_path / "bundle")
    assert {port.dtype for port in bundle.component("unet").inputs} == {"float32"}
    graph = onnx.shape_inference.infer_shapes(onnx.load(bundle.path / "unet" / "model.onnx")).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    kinds |= {weight.name: weight.data_type for weight in graph.initializer}
    products = {kinds[name] for node in graph.node if node.op_type in ("Conv", "Gemm") for name in node.input}
    assert products == {onnx.TensorProto.FLOAT16}
    assert "MultiHeadAttention" in {node.op_type for node in graph.node}
    islands = {name.partition("_")[0] for name in report["conversion"]["unet"]["islands"]}
    assert "InstanceNormalization" in islands and "Conv" not in islands


def test_no_file_knows_where_it_was_made(pair: tuple[Checkpoint, Bundle]):
    marks = [str(Path(__file__).parents[2]).encode(), b"site-packages", b".py"]
    for name in LAYOUT:
        data = (pair[1].path / name).read_bytes()
        assert not [mark for mark in marks if mark in data], name


@pytest.mark.parametrize(("guidance", "steps"), [(3.0, 10), (1.0, 4)])
def test_the_pictures_are_those_of_diffusers(pair: tuple[Checkpoint, Bundle], guidance: float, steps: int):
    """Same prompt, same noise, PyTorch on the other side: 40 dB and more."""
    import torch
    from diffusers import StableDiffusionPipeline

    checkpoint, bundle = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own deprecations
        reference = StableDiffusionPipeline.from_pretrained(
            checkpoint.path, torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        reference.set_progress_bar_config(disable=True)
        latents = torch.from_numpy(gaussian(5)((1, *bundle.manifest.pipeline.latent)))
        theirs = reference(
            "red apple", latents=latents, num_inference_steps=steps, guidance_scale=guidance, output_type="np"
        ).images[0]
    with Pipeline.open(bundle) as pipe:
        ours = np.asarray(pipe.generate("red apple", seed=5, steps=steps, guidance=guidance)) / 255
    assert theirs.std() > 0.01
    assert snr_db(theirs, ours) > 40


def test_golden_vectors_replay(pair: tuple[Checkpoint, Bundle]):
    """Stage by stage from the stored inputs, within the stored tolerances."""
    bundle = pair[1]
    told = json.loads((bundle.path / "golden" / "golden.json").read_text())
    stored, spec = load_file(bundle.path / "golden" / "vectors.safetensors"), bundle.manifest.pipeline
    tokenizer = Tokenizer.open(bundle.path / "tokenizer", spec.tokens)
    np.testing.assert_array_equal(tokenizer(told["texts"]).ids, stored["text_ids"])
    np.testing.assert_array_equal(stored["noise"][1], gaussian(told["seed"] + 1)(spec.latent))
    with Pipeline.open(bundle) as pipe:
        for i, prompt in enumerate(told["prompts"]):
            settings = {key: told[key] for key in ("sampler", "steps", "guidance", "negative")}
            frames = list(pipe.stream(prompt, seed=told["seed"] + i, **settings))
            np.testing.assert_array_equal(tokenizer([told["negative"], prompt]).ids, stored["input_ids"][i])
            text = pipe.encode(prompt, told["negative"], told["guidance"])
            within = told["tolerances"]
            assert np.abs(text[-1] - stored["last_hidden_state"][i]).max() <= within["last_hidden_state"]
            latents = np.stack([frame.latents[0] for frame in frames])
            assert np.abs(latents - stored["latents"][i]).max() <= within["latents"]
            picture = np.asarray(frames[-1].image(), np.int16)
            assert np.abs(picture - stored["images"][i]).max() <= within["images"]
    assert stored["timesteps"].shape == stored["sigmas"].shape == (told["steps"],)
