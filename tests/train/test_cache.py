"""What is computed once: found again, made anew when stale, gone on with after a kill, and the same as computed live."""

import io
import json
import shutil
import tarfile
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from kdc_edge.errors import GateError, UsageError
from train import autoencoder, cache
from train.cache import cached
from train.data import Source, load
from train.folders import load_pipeline
from train.recipes import PicturesConfig
from train.rows import Stored
from train.tokenizer import pad_ids
from train.trainer import Part, generator_at


@pytest.fixture
def config(few: Path, tmp_path: Path) -> PicturesConfig:
    return PicturesConfig(str(few), cache_dir=tmp_path / "cache", cache_dtype="fp32")


def part(index: int = 0, count: int = 1) -> Part:
    return Part(0, index, count, generator_at(0, 0), torch.device("cpu"))


def with_rows(few: Path, folder: Path, **changes: str) -> str:
    """The same pictures, described otherwise."""
    shutil.copytree(few, folder)
    rows = [json.loads(line) | changes for line in (few / "metadata.jsonl").read_text().splitlines()]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.mark.parametrize("shape", ["tiny_checkpoint", "tiny_sd_checkpoint"])
def test_what_is_stored_is_what_the_networks_say(
    shape: str, config: PicturesConfig, few: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "PICTURES", 5)
    monkeypatch.setattr(cache, "CAPTIONS", 7)
    pipeline = load_pipeline(str(request.getfixturevalue(shape)))
    source, table = cached(config, pipeline, 0.2)
    pictures = load(str(few), pipeline.unet.config.sample_size * pipeline.vae_scale_factor)
    found = autoencoder.posterior(pipeline.vae, pictures.tensor())
    assert torch.allclose(source.latents.mean[torch.arange(len(pictures))], found["mean"], atol=1e-5)
    assert (source.latents.std is not None) == ("std" in found) == (shape == "tiny_sd_checkpoint")
    assert table.captions == pictures.captions
    names = source.numbers[source.choice.starts[:-1]]
    with torch.no_grad():
        ids = pad_ids(pipeline.tokenizer, ["", *(group[0] for group in pictures.captions)])
        states = pipeline.text_encoder(ids).last_hidden_state
    assert torch.allclose(source.text[torch.cat([torch.tensor([0]), names])], states, atol=1e-5)


def test_parts_of_a_batch_are_the_batch(config: PicturesConfig, tiny_sd_checkpoint: Path) -> None:
    source, _ = cached(replace(config, flips=True), load_pipeline(str(tiny_sd_checkpoint)), 0.2)
    whole, parts = source.draw(8, part()), [source.draw(8, part(index, 4)) for index in range(4)]
    for name in ("noisy", "timesteps", "text", "target"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(each, name) for each in parts]))


def test_mirrored_pictures_are_drawn_half_of_the_time(config: PicturesConfig, tiny_checkpoint: Path) -> None:
    source, _ = cached(replace(config, flips=True), load_pipeline(str(tiny_checkpoint)), 0.2)
    index = torch.zeros(400, dtype=torch.int64)
    drawn = source.latents.draw(index, slice(None), generator_at(0, 0))
    plain = (drawn == source.latents.mean[index]).flatten(1).all(1)
    mirrored = (drawn == source.latents.flipped_mean[index]).flatten(1).all(1)
    assert (plain ^ mirrored).all() and 150 < plain.sum() < 250


def test_it_is_computed_once_and_goes_on_after_a_kill(
    config: PicturesConfig, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "PICTURES", 5)
    pipeline = load_pipeline(str(tiny_checkpoint))
    before = cached(config, pipeline, 0.2)[0].draw(4, part())
    (folder,) = config.cache_dir.iterdir()
    lost = folder / "pictures-00001.safetensors"
    wanted, times = lost.read_bytes(), {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    lost.unlink()
    after = cached(config, pipeline, 0.2)[0].draw(4, part())
    assert lost.read_bytes() == wanted
    changed = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {lost.name, lost.with_suffix(".json").name}
    assert torch.equal(before.noisy, after.noisy)


def test_shards_stream_through_little_memory_and_no_copy(
    config: PicturesConfig, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two WebDataset shards of 24 MB; what is held at once is a call's pictures, and nothing lies in the temporary folder."""
    data, temporary, rng = tmp_path / "shards", tmp_path / "tmp", np.random.default_rng(0)
    data.mkdir(), temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(cache, "PIXELS", 4 * 64**2)
    for shard in range(2):
        with tarfile.open(data / f"{shard:05}.tar", "w") as tar:
            for i in range(30):
                for kind, content in (("png", noise(rng, 512)), ("txt", f"noise {shard} {i}".encode())):
                    info = tarfile.TarInfo(f"{i:04}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    copied: list[Path] = []
    read = Source.read
    monkeypatch.setattr(Source, "read", lambda *given: copied.extend(temporary.rglob("*.*")) or read(*given))
    pipeline = load_pipeline(str(tiny_checkpoint))
    tracemalloc.start()
    _, table = cached(replace(config, data=str(data)), pipeline, 0.2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [group[0] for group in table.captions] == [f"noise {shard} {i}" for shard in range(2) for i in range(30)]
    assert copied == []
    assert peak < sum(path.stat().st_size for path in data.iterdir()) / 4


def noise(rng: np.random.Generator, side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def test_other_networks_pictures_or_settings_have_a_cache_of_their_own(
    config: PicturesConfig, tiny_checkpoint: Path, few: Path, tmp_path: Path
) -> None:
    pipeline = load_pipeline(str(tiny_checkpoint))
    cached(config, pipeline, 0.2)
    with torch.no_grad():
        pipeline.vae.encoder.layers[0].weight += 0.1
    cached(config, pipeline, 0.2)
    cached(replace(config, cache_dtype="fp16"), pipeline, 0.2)
    _, table = cached(replace(config, data=with_rows(few, tmp_path / "other", text="anything")), pipeline, 0.2)
    assert table.captions[0][0] == "anything"
    assert len(list(config.cache_dir.iterdir())) == 4


def test_a_setting_of_a_network_is_part_of_what_a_cache_is_made_from(
    config: PicturesConfig, tiny_checkpoint: Path
) -> None:
    pipeline = load_pipeline(str(tiny_checkpoint))
    cached(config, pipeline, 0.2)
    pipeline.vae.register_to_config(scaling_factor=0.5)
    cached(config, pipeline, 0.2)
    pipeline.text_encoder.config.hidden_act = "gelu"
    cached(config, pipeline, 0.2)
    assert len(list(config.cache_dir.iterdir())) == 3


def test_captions_that_are_too_long_and_pictures_that_are_too_few_are_said(
    few: Path, config: PicturesConfig, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pipeline = load_pipeline(str(tiny_checkpoint))
    cached(config, pipeline, 0.2)
    assert "captions" not in capsys.readouterr().err
    data = Path(with_rows(few, tmp_path / "other", text="red apple " * 40, subgroup="", group=""))
    first = (data / "metadata.jsonl").read_text().splitlines()[0]
    (data / "metadata.jsonl").write_text(first + "\n")
    cached(replace(config, data=str(data)), pipeline, 0.2)
    said = capsys.readouterr().err
    assert "1 of 2 captions have more than the 77 tokens that the text encoder reads" in said
    assert f"{data}: one picture only" in said


def test_a_share_that_is_none(config: PicturesConfig, tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=r"--toned-share is 1\.5; it must be between 0 and 1"):
        cached(config, load_pipeline(str(tiny_checkpoint)), 1.5)


def test_half_precision_is_near(config: PicturesConfig, tiny_checkpoint: Path) -> None:
    pipeline = load_pipeline(str(tiny_checkpoint))
    kinds = (replace(config, cache_dtype=kind) for kind in ("fp32", "fp16"))
    full, half = (cached(kind, pipeline, 0.2)[0].draw(16, part()) for kind in kinds)
    for name in ("noisy", "text", "target"):
        assert torch.allclose(getattr(full, name), getattr(half, name), rtol=2e-3, atol=2e-3)
        assert getattr(half, name).dtype == torch.float32


def test_latents_that_are_not_finite_are_named(config: PicturesConfig, tiny_checkpoint: Path) -> None:
    pipeline = load_pipeline(str(tiny_checkpoint))
    with torch.no_grad():
        pipeline.vae.encoder.layers[0].weight.fill_(torch.nan)
    with pytest.raises(GateError, match="rows 0 to 15: the autoencoder's latents are not finite"):
        cached(config, pipeline, 0.2)
    assert not list(config.cache_dir.rglob("*.safetensors"))


def test_no_picture_of_the_training_split(
    config: PicturesConfig, tiny_checkpoint: Path, few: Path, tmp_path: Path
) -> None:
    other = with_rows(few, tmp_path / "other", split="test")
    with pytest.raises(UsageError, match="none of its pictures is in the split 'train'"):
        cached(replace(config, data=other), load_pipeline(str(tiny_checkpoint)), 0.2)


def test_rows_are_read_across_files_in_any_order(tmp_path: Path) -> None:
    whole = torch.randn(10, 3)
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, rows in zip(paths, whole.split(4), strict=True):
        save_file({"other": torch.zeros(2), "x": rows.contiguous()}, path)
    found, index = Stored.open(paths, "x"), torch.tensor([9, 0, 4, 3, 4])
    assert found.shape == (10, 3) and torch.equal(found[index], whole[index])
