import json
import os
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kdc_edge.checkpoint import Checkpoint, read_header, weight_files
from kdc_edge.errors import BundleError

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


def shard(folder):
    """Split the U-Net's weights in two, as diffusers does."""
    tensors = load_file(folder / "unet" / WEIGHTS)
    names = sorted(tensors)
    files = {"diffusion_pytorch_model-00001-of-00002.safetensors": names[::2],
             "diffusion_pytorch_model-00002-of-00002.safetensors": names[1::2]}  # fmt: skip
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / "unet" / file)
    (folder / "unet" / WEIGHTS).unlink()
    weight_map = {name: file for file, part in files.items() for name in part}
    (folder / "unet" / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return list(files)


def test_a_good_one_opens(tiny_checkpoint, tiny_sd_checkpoint):
    for path in (tiny_checkpoint, tiny_sd_checkpoint):
        checkpoint = Checkpoint.open(path)
        assert checkpoint.config("unet")["_class_name"] == "UNet2DConditionModel"
        assert checkpoint.config("scheduler")["beta_schedule"] == "scaled_linear"
        assert checkpoint.info is None and len(checkpoint.id) == 64


def test_the_id_follows_the_files_and_not_the_log(tiny_checkpoint, checkpoint_copy):
    before = Checkpoint.open(tiny_checkpoint).id
    info = {"format": 1, "recipe": "teacher", "config": {"steps": 3}}
    (checkpoint_copy / "kdc.json").write_text(json.dumps(info))
    (checkpoint_copy / "README.md").write_text("a card")
    (checkpoint_copy / ".gitattributes").write_text("x")
    checkpoint = Checkpoint.open(checkpoint_copy)
    assert checkpoint.id == before and checkpoint.info.recipe == "teacher" and checkpoint.info.config == {"steps": 3}
    (checkpoint_copy / "scheduler" / "extra.json").write_text("{}")
    assert Checkpoint.open(checkpoint_copy).id != before


def test_shards_open_and_are_listed_in_order(checkpoint_copy):
    files = shard(checkpoint_copy)
    Checkpoint.open(checkpoint_copy)
    assert [path.name for path in weight_files(checkpoint_copy / "unet")] == files


def test_headers_agree_with_the_library(tiny_checkpoint):
    path = tiny_checkpoint / "unet" / WEIGHTS
    header, tensors = read_header(path), load_file(path)
    assert {name: tuple(entry["shape"]) for name, entry in header.items()} == {n: t.shape for n, t in tensors.items()}


def test_an_empty_header_is_fine(tmp_path):
    save_file({}, tmp_path / "x.safetensors")
    assert read_header(tmp_path / "x.safetensors") == {}


def truncate(folder):
    path = folder / "unet" / WEIGHTS
    os.truncate(path, path.stat().st_size - 1)


def truncate_to_nothing(folder):
    os.truncate(folder / "vae" / WEIGHTS, 3)


def lengthen(folder):
    with (folder / "unet" / WEIGHTS).open("ab") as file:
        file.write(b"x")


def huge_header(folder):
    (folder / "unet" / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}")


def bad_header(folder):
    (folder / "unet" / WEIGHTS).write_bytes(struct.pack("<Q", 2) + b"[]")


def pickle_instead(folder):
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")


def no_weights(folder):
    (folder / "text_encoder" / "model.safetensors").unlink()


def no_component(folder):
    shutil.rmtree(folder / "vae")


def no_index(folder):
    (folder / "model_index.json").unlink()


def empty_index(folder):
    (folder / "model_index.json").write_text("[]")


def list_as_config(folder):
    (folder / "unet" / "config.json").write_text("[]")


def missing_shard(folder):
    (folder / "unet" / shard(folder)[1]).unlink()


def wrong_shard(folder):
    first = folder / "unet" / shard(folder)[0]
    tensors = load_file(first)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, first)


def index_to(name):
    def harm(folder):
        (folder / "unet" / INDEX).write_text(json.dumps({"weight_map": {"x": name}}))

    return harm


def no_map(folder):
    (folder / "unet" / INDEX).write_text("{}")


def info(**fields):
    def harm(folder):
        (folder / "kdc.json").write_text(json.dumps({"format": 1, "recipe": "r", "config": {}} | fields))

    return harm


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, f"{WEIGHTS}: .* bytes, its header says"),
        (truncate_to_nothing, f"{WEIGHTS}: 3 bytes, too short"),
        (lengthen, f"{WEIGHTS}: .* bytes, its header says"),
        (huge_header, "too short for a safetensors header of 4611686018427387904"),
        (bad_header, "not a safetensors file"),
        (pickle_instead, "diffusion_pytorch_model.bin: a pickle, which can run any code"),
        (no_weights, "text_encoder: no .safetensors weights"),
        (no_component, "vae.*no such file"),
        (no_index, "model_index.json: no such file"),
        (empty_index, "names no pipeline class"),
        (list_as_config, "must be a JSON object"),
        (missing_shard, "00002-of-00002.safetensors: missing"),
        (wrong_shard, "lacks the tensor"),
        (index_to("../../x.safetensors"), "which is not a safetensors file beside it"),
        (index_to("x.bin"), "which is not a safetensors file beside it"),
        (index_to("x.safetensors"), "x.safetensors: missing"),
        (index_to(3), "no weight_map"),
        (no_map, "no weight_map"),
        (info(format=2), "format 2, this kdc-edge reads 1; update kdc-edge"),
        (info(format=0), "train it again"),
        (info(recipie="x"), "did you mean 'recipe'"),
    ],
)
def test_harm_is_seen_and_named(checkpoint_copy, harm, message):
    harm(checkpoint_copy)
    with pytest.raises(BundleError, match=message):
        Checkpoint.open(checkpoint_copy)


def test_a_pickle_beside_safetensors_is_ignored(checkpoint_copy):
    (checkpoint_copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    Checkpoint.open(checkpoint_copy)
    assert [path.name for path in weight_files(checkpoint_copy / "unet")] == [WEIGHTS]


def test_a_header_without_offsets(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [1]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + np.zeros(1, "<f4").tobytes())
    with pytest.raises(BundleError, match="not a safetensors file"):
        read_header(tmp_path / "x.safetensors")


def test_a_missing_folder(tmp_path):
    with pytest.raises(BundleError, match="no such folder"):
        Checkpoint.open(tmp_path / "none")
