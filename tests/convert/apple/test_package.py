"""Packages: what the Swift side expects, exact timesteps in fp16, attention by einsums, one program for all versions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch

from convert.apple import networks
from convert.apple.attention import SplitEinsum
from convert.apple.hollow import hollow
from convert.apple.package import package_component, swift_ports, tidy
from convert.apple.program import convert
from convert.apple.schemes import PRECISIONS, SMALLEST
from convert.parity import snr_db
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import GateError
from kdc_edge.runtimes.apple import PACKAGES, call
from kdc_edge.spec import component_ports, pipeline_spec
from kdc_edge.torch_ref.mil.program import Program
from kdc_edge.torch_ref.networks import load_network
from kdc_edge.torch_ref.quiet import silent
from kdc_edge.torch_ref.runtime import open_runtime
from tests.convert.apple.toy import ABOUT, PORTS, SETTINGS, Wrapped

FLOAT32 = 65568  # FeatureTypes.proto, ArrayDataType
# what fails inside coremltools leaves a folder to the collector
leaves_a_folder = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("component", PACKAGES)
def test_every_name_shape_and_type_is_what_the_swift_package_reads(
    component: str, packages: Path, tiny_checkpoint: Path
):
    spec = ct.models.utils.load_spec(str(packages / f"{PACKAGES[component].title}.mlpackage"))
    ports = swift_ports(Checkpoint.open(tiny_checkpoint), component, batch=1)
    for features, wanted in ((spec.description.input, ports.inputs), (spec.description.output, ports.outputs)):
        assert [feature.name for feature in features] == [port.name for port in wanted]
        assert {feature.type.multiArrayType.dataType for feature in features} == {FLOAT32}
        assert all(feature.shortDescription for feature in features)
    for feature, port in zip(spec.description.input, ports.inputs, strict=True):
        assert tuple(feature.type.multiArrayType.shape) == port.shape
    told = spec.description.metadata
    assert (told.author, told.license, told.versionString) == (ABOUT.author, ABOUT.licence, ABOUT.version)
    assert told.shortDescription == PACKAGES[component].summary
    assert spec.specificationVersion == 8


@pytest.mark.parametrize("timestep", [1, 500, 981, 999])
def test_an_fp16_package_has_the_timestep_exactly(timestep: int, packages: Path, tiny_checkpoint: Path):
    """Each fp16 operator rounded: with the angle in fp16, too, the prediction is off by up to 9e-3."""
    random = np.random.RandomState(timestep)
    inputs = {
        "sample": random.standard_normal((1, 16, 8, 8)).astype(np.float32),
        "timestep": np.array(timestep, np.float32),
        "encoder_hidden_states": random.standard_normal((1, 77, 32)).astype(np.float32),
    }
    reference = open_runtime(Checkpoint.open(tiny_checkpoint), "unet")
    program = Program.open(packages / "Unet.mlpackage")
    out = call("unet", reference.ports, 1, lambda arrays: program(**arrays), inputs)["out_sample"]
    wanted = reference(**inputs)["out_sample"]
    assert np.abs(out - wanted).max() / np.abs(wanted).max() < 2e-3
    kept = {step.kind for step in program.steps if "fp32" in step.types} - {"cast"}
    assert kept == {"expand_dims", "mul", "sin", "cos"}


@pytest.mark.parametrize("component", PACKAGES)
def test_packages_answer_as_pytorch_does(component: str, packages: Path, tiny_checkpoint: Path):
    assert nearness(component, packages, tiny_checkpoint) > 50


@pytest.mark.parametrize("component", ["vae_decoder", "vae_encoder"])
def test_both_halves_of_a_kl_autoencoder_in_two_sizes(component: str, tiny_sd_checkpoint: Path, tmp_path: Path):
    """Two functions of one package, weights stored once."""
    settings = replace(SETTINGS, target="ios18", resolutions=((8, 16),))
    done = package_component(tiny_sd_checkpoint, component, tmp_path, settings, PRECISIONS["fp16"][component])
    assert nearness(component, tmp_path, tiny_sd_checkpoint) > 50
    wide = {"height": 8, "width": 16, "image_height": 16, "image_width": 32}
    assert nearness(component, tmp_path, tiny_sd_checkpoint, "h8w16", wide) > 50
    weights = tmp_path / f"{PACKAGES[component].title}.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    assert weights.stat().st_size < 2 * 2 * done.parameters


def nearness(
    component: str, folder: Path, path: Path, function: str | None = None, sizes: dict[str, int] | None = None
) -> float:
    """Least SNR of a component's outputs, three rows asked of a package of one, dB; at its own size, or of `sizes`."""
    checkpoint = Checkpoint.open(path)
    spec = pipeline_spec(checkpoint)
    ports = component_ports(checkpoint, spec, any_size=True)[component].bind(spec.sizes if sizes is None else sizes)
    random, inputs = np.random.RandomState(3), {}
    for port in ports.inputs:
        shape = tuple(3 if axis == "batch" else axis for axis in port.shape)
        drawn = random.randint(0, 200, shape) if port.dtype == "int64" else random.standard_normal(shape)
        inputs[port.name] = np.asarray(drawn, port.dtype)
    program = Program.open(folder / f"{PACKAGES[component].title}.mlpackage", function)
    found = call(component, ports, 1, lambda arrays: program(exact=True, **arrays), inputs)
    reference = open_runtime(checkpoint, component, any_size=True)
    return min(snr_db(wanted, found[name]) for name, wanted in reference(**inputs).items())


def test_einsum_attention_is_attention(tiny_sd_checkpoint: Path):
    """Cross and self attention of the whole U-Net, fp32, in PyTorch."""
    model = load_network(Checkpoint.open(tiny_sd_checkpoint), "unet").model
    torch.manual_seed(0)
    inputs = torch.randn(2, 4, 8, 8), torch.tensor(700.0), torch.randn(2, 77, 32)
    with torch.no_grad():
        plain = model(*inputs).sample
        model.set_attn_processor(SplitEinsum())
        assert snr_db(plain.numpy(), model(*inputs).sample.numpy()) > 110


def test_einsum_attention_refuses_masks():
    with pytest.raises(NotImplementedError, match="without masks"):
        SplitEinsum()(torch.nn.Identity(), torch.zeros(1, 2, 4), attention_mask=torch.zeros(1, 2))


def other_weights(seed: int) -> Wrapped:
    network = Wrapped().eval()
    torch.manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter)
    return network


def test_an_update_is_a_weight_file_and_not_a_program(tmp_path: Path):
    """Two versions of a network: the same program byte for byte, names and places of all tensors in it."""
    files = {}
    for name, seed in (("first", 1), ("again", 1), ("next", 2)):
        with silent():
            model = convert(networks.trace(other_weights(seed), networks.example(PORTS)), PORTS, SETTINGS)
            model.save(str(tmp_path / f"{name}.mlpackage"))
            tidy(tmp_path / f"{name}.mlpackage")
        root = tmp_path / f"{name}.mlpackage"
        files[name] = {
            path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
        }
    assert files["first"] == files["again"]
    assert [name for name in files["first"] if files["first"][name] != files["next"][name]] == [
        "Data/com.apple.CoreML/weights/weight.bin"
    ]


def test_a_hollow_network_is_the_same_package(tmp_path: Path):
    """Byte for byte, but for weights that fp16 holds and fp32 islands that it does not."""
    network, made = other_weights(1), []
    for weights in (None, hollow(plain := other_weights(1))):
        with silent():
            traced = networks.trace(network if weights is None else plain, networks.example(PORTS))
            convert(traced, PORTS, SETTINGS, weights).save(str(tmp_path / "toy.mlpackage"))
        tidy(tmp_path / "toy.mlpackage")
        files = [path for path in (tmp_path / "toy.mlpackage").rglob("*") if path.is_file()]
        made.append({path.name: path.read_bytes() for path in files})
    assert plain.model.conv.weight.untyped_storage().nbytes() == 4
    assert made[0] == made[1]


@leaves_a_folder
def test_a_weight_that_is_not_in_the_program_is_a_gate_error():
    network = other_weights(1)
    network.unread = torch.nn.Linear(64, 64)
    weights = hollow(network)
    with pytest.raises(GateError, match=r"1 weights are not in the program, the first is unread\.weight"), silent():
        convert(networks.trace(network, networks.example(PORTS)), PORTS, SETTINGS, weights)


class Exotic(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.cholesky(x)


@leaves_a_folder
def test_an_operator_that_coremltools_does_not_know_is_a_gate_error():
    traced = networks.trace(Exotic(), [torch.eye(3)])
    ports = replace(PORTS, inputs=(replace(PORTS.inputs[0], shape=(3, 3)),))
    with pytest.raises(GateError, match=r"cannot convert it: .*cholesky"), silent():
        convert(traced, ports, SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["ios16", "ios17", "ios18"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("component", PACKAGES)
def test_every_network_on_every_target_by_every_scheme(
    component: str, precision: str, target: str, tiny_checkpoint: Path, tmp_path: Path
):
    plan = PRECISIONS[precision][component]
    if target != "ios18" and precision in ("palette3", "int4") and component == "unet":
        pytest.skip(f"{precision} is refused for {target}, see test_schemes")
    settings = replace(SETTINGS, target=target, half=precision != "fp32")
    package_component(tiny_checkpoint, component, tmp_path, settings, plan)
    assert nearness(component, tmp_path, tiny_checkpoint) > (90 if precision == "fp32" else 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"attention": "split-einsum"}, {"chunk": True}, {"target": "ios18", "resolutions": ((8, 16),)}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_unet_in_other_forms_has_all_its_weights(changes: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path):
    """Stored small, but for those of up to 2,048 numbers; asked for whole where there is one package."""
    settings, plan = replace(SETTINGS, **changes), PRECISIONS["palette8"]["unet"]
    done = package_component(tiny_checkpoint, "unet", tmp_path, settings, plan)
    network = load_network(Checkpoint.open(tiny_checkpoint), "unet")
    large = [p.numel() for p in network.parameters() if p.ndim > 1 and p.numel() > SMALLEST]
    assert (done.compressed.tensors, done.compressed.numbers) == ({"palette 8": len(large)}, {"palette 8": sum(large)})
    if len(done.packages) == 1:
        assert nearness("unet", tmp_path, tiny_checkpoint) > 33
    if settings.resolutions:
        wide = {"height": 8, "width": 16, "image_height": 64, "image_width": 128}
        assert nearness("unet", tmp_path, tiny_checkpoint, "h8w16", wide) > 33
