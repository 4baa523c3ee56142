import dataclasses
import hashlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdc_edge import manifest as contract
from kdc_edge import schema
from kdc_edge.bundle import Bundle, seal
from kdc_edge.errors import BundleError, UsageError
from tests.kdc_edge.builders import manifest, with_manifest

MODEL = "unet/model.onnx"


def read(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def test_a_sealed_bundle_opens(hand_bundle):
    bundle = Bundle.open(hand_bundle)
    assert bundle.manifest.pipeline == manifest().pipeline
    assert set(bundle.manifest.files) == {
        "text_encoder/model.onnx", MODEL, "vae_decoder/model.onnx", "tokenizer/vocab.json", "tokenizer/merges.txt",
    }  # fmt: skip
    assert bundle.bytes == sum((hand_bundle / name).stat().st_size for name in bundle.manifest.files)
    assert bundle.report == {}
    assert bundle.component("unet").files == (MODEL,)
    with pytest.raises(UsageError, match="did you mean 'unet'"):
        bundle.component("unett")


def test_the_id_is_the_hash_of_pipeline_components_and_files(hand_bundle):
    data = read(hand_bundle)
    identity = {key: data[key] for key in ("pipeline", "components", "files")}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert Bundle.open(hand_bundle).id == hashlib.sha256(text.encode()).hexdigest()


def test_the_id_ignores_name_report_and_card_and_follows_steps(bundle_copy):
    before = Bundle.open(bundle_copy).id
    (bundle_copy / "report.json").write_text('{"format": 1}')
    (bundle_copy / "README.md").write_text("another card")
    with_manifest(bundle_copy, name="other", provenance={"checkpoint": "1" * 64})
    assert Bundle.open(bundle_copy).id == before and Bundle.open(bundle_copy).report == {"format": 1}
    with_manifest(bundle_copy, pipeline=read(bundle_copy)["pipeline"] | {"steps": 9})
    assert Bundle.open(bundle_copy).id != before


def test_hidden_files_are_nobodys(bundle_copy):
    (bundle_copy / ".gitattributes").write_text("x")
    (bundle_copy / ".cache").mkdir()
    (bundle_copy / ".cache" / "x").write_text("x")
    Bundle.open(bundle_copy)


def test_a_link_is_as_good_as_what_it_points_at(bundle_copy):
    """Download caches keep files by hash and link to them."""
    blob = bundle_copy.parent / "blob"
    (bundle_copy / MODEL).rename(blob)
    (bundle_copy / MODEL).symlink_to(blob)
    Bundle.open(bundle_copy)
    blob.write_bytes(b"x" * blob.stat().st_size)
    with pytest.raises(BundleError, match="sha256"):
        Bundle.open(bundle_copy)


def damage_hash(folder):
    data = bytearray((folder / MODEL).read_bytes())
    data[-1] ^= 1
    (folder / MODEL).write_bytes(data)


def truncate(folder):
    os.truncate(folder / MODEL, 10)


def delete(folder):
    (folder / MODEL).unlink()


def add(folder):
    (folder / "unet" / "model.onnx.data").write_bytes(b"x")


def drop_manifest(folder):
    (folder / "manifest.json").unlink()


def change(**fields):
    return lambda folder: with_manifest(folder, **fields)


def list_file(name):
    return lambda folder: with_manifest(folder, files=read(folder)["files"] | {name: {"sha256": "0" * 64, "bytes": 1}})


def set_pipeline(**fields):
    return lambda folder: with_manifest(folder, pipeline=read(folder)["pipeline"] | fields)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_hash, f"{MODEL}: sha256 is .*…, manifest says .*…; fetch the bundle again"),
        (truncate, f"{MODEL}: 10 bytes, manifest says"),
        (delete, f"{MODEL}: missing, the manifest lists it"),
        (add, "model.onnx.data: not in the manifest"),
        (drop_manifest, "manifest.json: no such file"),
        (change(format=2), "format 2, this kdc-edge reads 1; update kdc-edge"),
        (change(format=0), "format 0, this kdc-edge reads 1; convert the model again"),
        (change(format="1"), 'format is "1", must be an integer'),
        (change(pipelien={}), "does not know; did you mean 'pipeline'"),
        (change(runtime="onxn"), "did you mean 'onnx'"),
        (change(components={"unett": {"files": [], "inputs": [], "outputs": [], "parameters": 0}}), "mean 'unet'"),
        (
            change(components={"unet": {"files": [], "inputs": [], "outputs": [], "parameters": 0}}),
            "unet lists no file",
        ),
        (change(files={}), "not in the manifest"),
        (set_pipeline(guidance=10**400), "too large a number"),
        (list_file("../evil"), "'../evil', which is not a plain path"),
        (list_file("/etc/passwd"), "not a plain path"),
        (list_file("a/../../b"), "not a plain path"),
        (list_file("c:\\x"), "not a plain path"),
        (list_file("a//b"), "not a plain path"),
        (list_file(""), "not a plain path"),
        (set_pipeline(steps=0), "pipeline has a size, a step count"),
        (set_pipeline(guidance=-1), "out of range"),
        (set_pipeline(latent=[4, 8]), "pipeline.latent has 2 items, must have 3"),
        (set_pipeline(sampler="eular"), "did you mean 'euler'"),
    ],
)
def test_harm_is_seen_and_named(bundle_copy, harm, message):
    harm(bundle_copy)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle_copy)


def test_a_missing_folder(tmp_path):
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.open(tmp_path / "none")


def test_a_component_needs_its_files_listed(bundle_copy):
    data = read(bundle_copy)
    del data["files"][MODEL]
    with_manifest(bundle_copy, files=data["files"])
    with pytest.raises(BundleError, match=r"component unet needs 'unet/model.onnx', which files does not list"):
        Bundle.open(bundle_copy)


def test_sealing_hashes_every_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.bin").write_bytes(b"abc")
    (tmp_path / "report.json").write_text("{}")
    bare = dataclasses.replace(manifest(), components={})
    sealed = seal(tmp_path, bare)
    assert list(sealed.files) == ["a/b.bin"] and sealed.files["a/b.bin"].bytes == 3
    assert Bundle.open(tmp_path).manifest == sealed


@given(st.text(max_size=20))
def test_safe_paths_stay_inside(path):
    if contract.is_safe(path):
        joined = os.path.normpath(os.path.join("/bundle", path))
        assert joined.startswith("/bundle/") and joined == f"/bundle/{path}"


def test_manifests_survive_json():
    data = json.loads(json.dumps(schema.dump(manifest())))
    assert contract.parse(data, "here") == manifest()
