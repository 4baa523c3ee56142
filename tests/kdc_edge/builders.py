"""A bundle made by hand: three ONNX graphs of a few nodes, a byte tokenizer with a dozen merges, a sealed manifest."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers.pre_tokenizers import ByteLevel

from kdc_edge.bundle import seal
from kdc_edge.manifest import Betas, Component, Manifest, PipelineSpec, Provenance, Requires
from kdc_edge.pipeline import COMPONENTS as PICTURE
from kdc_edge.ports import COMPONENTS, Port

CHANNELS, GRID, TOKENS, WIDTH = 4, 8, 77, 8
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = [
    "r e",
    "re d</w>",
    "a p",
    "l e</w>",
    "ap p",
    "app le</w>",
    "h e",
    "he a",
    "hea r",
    "hear t</w>",
    "i n",
    "in g</w>",
]
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

EMOJI_BETAS = Betas("scaled_linear", 0.00085, 0.012, 1000, "trailing", 0, True)
SPEC = PipelineSpec(
    image_size=(64, 64),
    latent=(CHANNELS, GRID, GRID),
    latent_scaling=0.5,
    tokens=TOKENS,
    prediction_type="v_prediction",
    betas=EMOJI_BETAS,
    sampler="ddim",
    steps=4,
    guidance=3.0,
)
SIZES = {
    "tokens": TOKENS,
    "text_width": WIDTH,
    "channels": CHANNELS,
    "height": GRID,
    "width": GRID,
    "colours": 3,
    "moments": 2 * CHANNELS,
    "image_height": 64,
    "image_width": 64,
}


def write_bundle(folder: Path, spec: PipelineSpec = SPEC) -> Path:
    folder.mkdir(parents=True)
    vocab = write_tokenizer(folder / "tokenizer")
    for name, (nodes, weights) in graphs(len(vocab)).items():
        write_graph(folder / name / "model.onnx", name, nodes, weights)
    (folder / "README.md").write_text("a card", encoding="utf-8")
    seal(folder, manifest(spec))
    return folder


def manifest(spec: PipelineSpec = SPEC) -> Manifest:
    components = {}
    for name in PICTURE:
        bound = COMPONENTS[name].bind(SIZES)
        components[name] = Component((f"{name}/model.onnx",), bound.inputs, bound.outputs, parameters=100, macs=None)
    return Manifest(
        format=1,
        name="hand",
        version="1",
        runtime="onnx",
        target="cpu",
        precision="fp32",
        pipeline=spec,
        components=components,
        files={},
        provenance=Provenance("0" * 64, tools={"onnx": onnx.__version__}),
        requires=Requires("onnxruntime>=1.18"),
    )


def write_tokenizer(folder: Path) -> dict[str, int]:
    """vocab.json and merges.txt as CLIP has them; returns the vocabulary."""
    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, *(f"{c}</w>" for c in alphabet), *("".join(pair.split()) for pair in MERGES), START, END]
    vocab = {word: i for i, word in enumerate(words)}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]), encoding="utf-8")
    return vocab


def graphs(vocab: int) -> dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray]]]:
    """Per component its nodes and weights: small, seeded, and depending on every input."""
    state = np.random.RandomState(0)
    node = helper.make_node
    text = [node("Gather", ["table", "input_ids"], ["last_hidden_state"])]
    text += [node("ReduceMean", ["last_hidden_state", "one"], ["pooler_output"], keepdims=0)]
    unet = [
        node("ReduceMean", ["encoder_hidden_states", "last_two"], ["mean"], keepdims=1),
        node("Unsqueeze", ["mean", "one"], ["mean_4d"]),
        node("Mul", ["timestep", "small"], ["time"]),
        node("Add", ["mean_4d", "time"], ["shift"]),
        node("Mul", ["sample", "half"], ["scaled"]),
        node("Add", ["scaled", "shift"], ["out_sample"]),
    ]
    decoder = [
        node("Conv", ["latent_sample", "kernel"], ["blocks"]),
        node("DepthToSpace", ["blocks"], ["sample"], blocksize=8),
    ]
    table = state.standard_normal((vocab, WIDTH)).astype(np.float32)
    kernel = state.standard_normal((3 * 64, CHANNELS, 1, 1)).astype(np.float32) * 0.2
    small, half = np.float32(1e-3), np.float32(0.5)
    return {
        "text_encoder": (text, {"table": table, "one": np.array([1])}),
        "unet": (unet, {"last_two": np.array([1, 2]), "one": np.array([1]), "small": small, "half": half}),
        "vae_decoder": (decoder, {"kernel": kernel}),
    }


def write_graph(path: Path, name: str, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> None:
    ports = COMPONENTS[name].bind(SIZES)
    initializers = [numpy_helper.from_array(np.asarray(array), key) for key, array in weights.items()]
    inputs, outputs = ([value_info(port) for port in side] for side in (ports.inputs, ports.outputs))
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.parent.mkdir(parents=True)
    path.write_bytes(model.SerializeToString())


def value_info(port: Port) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(port.name, TYPES[port.dtype], list(port.shape))


def with_manifest(folder: Path, **changes: object) -> None:
    """Rewrite the folder's manifest with top-level fields changed, hashes kept."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def sd_spec() -> PipelineSpec:
    """As Stable Diffusion 1.x: epsilon, leading, pndm."""
    return replace(
        SPEC, prediction_type="epsilon", sampler="pndm", betas=replace(EMOJI_BETAS, spacing="leading", steps_offset=1)
    )
