"""The reference networks: what loads, what is refused, and that they fit the port table."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from kdc_edge import ports
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import BundleError, UsageError
from kdc_edge.spec import component_ports, pipeline_spec
from kdc_edge.torch_ref.networks import NETWORKS, load_model
from kdc_edge.torch_ref.runtime import open_runtime

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.mark.parametrize("component", NETWORKS)
@pytest.mark.parametrize("which", ["tiny_checkpoint", "tiny_sd_checkpoint"])
def test_networks_fit_the_port_table(component: str, which: str, request: pytest.FixtureRequest):
    checkpoint = Checkpoint.open(request.getfixturevalue(which))
    bound = component_ports(checkpoint, pipeline_spec(checkpoint))[component]
    outputs = open_runtime(checkpoint, component)(**ports.zeros(bound.inputs, {"batch": 3}))
    assert {name: (a.shape, str(a.dtype)) for name, a in outputs.items()} == {
        port.name: (ports.resolve(port, {"batch": 3}), port.dtype) for port in bound.outputs
    }


def test_a_feed_that_does_not_fit_is_refused(tiny_checkpoint: Path):
    runtime = open_runtime(Checkpoint.open(tiny_checkpoint), "vae_decoder")
    with pytest.raises(UsageError, match="latent_sample has shape"):
        runtime(latent_sample=np.zeros((1, 4, 8, 8), np.float32))


def test_half_weights_load_as_fp32_without_gradients(tiny_checkpoint: Path):
    stored = load_file(tiny_checkpoint / UNET)
    model = load_model(Checkpoint.open(tiny_checkpoint), "unet")
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad
        assert parameter.dtype == torch.float32
        assert stored[name].dtype == torch.float16
        assert torch.equal(parameter, stored[name].float())


def test_shards_load_as_one_file_does(tiny_checkpoint: Path, copy: Path):
    whole = UNet2DConditionModel.from_pretrained(tiny_checkpoint / "unet")
    (copy / UNET).unlink()
    whole.save_pretrained(copy / "unet", max_shard_size="100KB")
    assert len(list((copy / "unet").glob("*.safetensors"))) > 2
    loaded = load_model(Checkpoint.open(copy), "unet").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in whole.state_dict().items())


def test_a_missing_tensor_is_refused_by_name(copy: Path):
    tensors = load_file(copy / UNET)
    del tensors["conv_in.weight"]
    save_file(tensors, copy / UNET)
    with pytest.raises(BundleError, match=r"conv_in\.weight"):
        load_model(Checkpoint.open(copy), "unet")


def test_tensors_of_another_shape_are_refused(copy: Path):
    tensors = load_file(copy / UNET)
    tensors["conv_in.bias"] = torch.zeros(99)
    save_file(tensors, copy / UNET)
    with pytest.raises(BundleError, match="UNet2DConditionModel"):
        load_model(Checkpoint.open(copy), "unet")


def test_a_class_nobody_knows_is_refused(copy: Path):
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "UNet2DConditionalModel"}))
    with pytest.raises(BundleError, match="did you mean 'UNet2DConditionModel'"):
        load_model(Checkpoint.open(copy), "unet")
