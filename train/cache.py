"""Latents and text states on disk, computed once: memory-mapped safetensors shards that a training step reads rows of.

A cache is a folder named by what it was made from, pictures, size, autoencoder and text encoder, so a stale one is simply not
found. Shards are written whole or not at all and divided among the processes of `accelerate launch`; a run that was killed
goes on with those that are missing. No process holds the pictures.
"""

# N pictures, C latent channels, h w latent grid, M distinct captions, T text tokens, D text width

import hashlib
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTokenizer

from kdc_edge.checkpoint import read_header
from kdc_edge.errors import GateError, UsageError
from kdc_edge.files import read_json, replacing, sha256, write_json
from kdc_edge.schema import canonical
from train import autoencoder
from train.captions import CaptionChoice
from train.data import Record, Source, open_source, shares
from train.diffusion import Cache, Latents, noise_schedule
from train.ranges import check_number
from train.recipes import PicturesConfig
from train.rows import Stored
from train.tokenizer import pad_ids

FORMAT = 2
PICTURES, CAPTIONS = 2048, 1024  # of a shard
PIXELS = 1 << 20  # of one call of the autoencoder
TEXTS = 128  # of one call of the text encoder
TORCH = {"fp16": torch.float16, "fp32": torch.float32}
NOT_FINITE = "the autoencoder's latents are not finite; look at these pictures, or use an autoencoder in float32"


def cached(
    config: PicturesConfig, pipeline: StableDiffusionPipeline, toned_share: float, encode: bool = True
) -> tuple[Cache, "Table"]:
    """The draws that a U-Net is trained with, from disk or computed now, and what is known of the pictures.

    Without `encode` there are no latents but their shape, for those who start from noise. Raises GateError where an
    autoencoder answers with something that is not finite, and what reading the data raises.
    """
    check_number("toned_share", toned_share)
    scheduler = noise_schedule(pipeline.scheduler)
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    made_from = {
        "format": FORMAT,
        "data": fingerprint(config.data, config.data_revision),
        "size": size,
        "flips": config.flips,
        "dtype": config.cache_dtype,
        "networks": [network_hash(pipeline.vae) if encode else None, network_hash(pipeline.text_encoder)],
        "vocabulary": pipeline.tokenizer.get_vocab(),
    }
    folder = config.cache_dir / hashlib.sha256(canonical(made_from)).hexdigest()[:16]
    pictures = _pictures(folder, config, pipeline.vae if encode else None, size)
    table = Table.open([path.with_suffix(".json") for path in pictures])
    if len(table.rows) == 1:
        print(f"{config.data}: one picture only; a network trained on it draws nothing else", file=sys.stderr)
    prompts = list(dict.fromkeys(["", *(text for group in table.captions for text in group)]))
    texts = _texts(folder, config, pipeline, prompts)
    number = {text: i for i, text in enumerate(prompts)}
    stored = {name: Stored.open(pictures, name) for name in read_header(pictures[0])}
    unet = pipeline.unet.config
    none = torch.empty(0, unet.in_channels, unet.sample_size, unet.sample_size)
    source = Cache(
        latents=Latents(**stored) if encode else Latents(none),
        text=Stored.open(texts, "states"),
        choice=CaptionChoice(table.captions),
        numbers=torch.tensor([number[text] for group in table.captions for text in group]),
        weights=shares(table.rows, toned_share),
        scheduler=scheduler,
    )
    return source, table


@dataclass(frozen=True)
class Table:
    """What is known of every picture, without its pixels."""

    captions: tuple[tuple[str, ...], ...]
    rows: tuple[dict[str, str], ...]
    digest: str
    """SHA-256 over pixels and captions."""

    @classmethod
    def open(cls, paths: Sequence[Path]) -> "Table":
        parts = [read_json(path) for path in paths]
        captions = tuple(tuple(group) for part in parts for group in part["captions"])
        rows = tuple(row for part in parts for row in part["rows"])
        digest = hashlib.sha256("".join(part["pixels"] for part in parts).encode() + canonical(captions))
        return cls(captions, rows, digest.hexdigest())


def _pictures(folder: Path, config: PicturesConfig, vae: nn.Module | None, size: int) -> list[Path]:
    """Shards of latents, of none without `vae`, each with what is known of its pictures in a JSON file beside it."""
    state, index = PartialState(), folder / "pictures.json"
    if index.exists():  # the data need not be opened again
        known = [folder / name for name in read_json(index)]
        if all(path.exists() for path in known):
            return known
    vae = None if vae is None else vae.to(state.device)
    paths: list[Path] = []
    with open_source(config.data, revision=config.data_revision) as source:
        records = (record for record in tqdm(source, "pictures", unit="", disable=None) if record.split == "train")
        while (first := next(records, None)) is not None:
            path = folder / f"pictures-{len(paths):05}.safetensors"
            shard = chain([first], islice(records, PICTURES - 1))
            if len(paths) % state.num_processes == state.process_index and not path.exists():
                _write_pictures(path, shard, source, vae, size, config)
            deque(shard, maxlen=0)  # of another process or of before: read past
            paths.append(path)
    if not paths:
        raise UsageError(f"{config.data}: none of its pictures is in the split 'train'")
    state.wait_for_everyone()
    if state.is_main_process and not index.exists():
        write_json(index, [path.name for path in paths])
    return paths


def _write_pictures(
    path: Path, shard: Iterator[Record], source: Source, vae: nn.Module | None, size: int, config: PicturesConfig
) -> None:
    tensors: dict[str, list[Tensor]] = {}
    known: dict[str, list[Any]] = {"captions": [], "rows": []}
    digest = hashlib.sha256()
    while records := list(islice(shard, max(1, PIXELS // size**2))):
        pictures, captions, rows = zip(*(source.read(record, size) for record in records), strict=True)
        pixels = np.stack(pictures)
        digest.update(pixels.tobytes())
        known["captions"] += captions
        known["rows"] += rows
        found = {} if vae is None else _encoded(vae, torch.from_numpy(pixels).permute(0, 3, 1, 2), config.flips)
        for name, value in found.items():
            if not torch.isfinite(value).all():
                raise GateError(f"{source.name}, rows {records[0].number} to {records[-1].number}: {NOT_FINITE}")
            tensors.setdefault(name, []).append(value.to(TORCH[config.cache_dtype]))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_suffix(".json"), known | {"pixels": digest.hexdigest()})
    with replacing(path) as temporary:
        save_file({name: torch.cat(parts) for name, parts in tensors.items()}, temporary)


def _encoded(vae: nn.Module, pixels: Tensor, flips: bool) -> dict[str, Tensor]:
    """Means and, of a KL autoencoder, deviations; of mirrored pictures too if `flips`."""
    found = autoencoder.posterior(vae, pixels)
    if flips:
        found |= {f"flipped_{name}": value for name, value in autoencoder.posterior(vae, pixels.flip(3)).items()}
    return found


def _texts(
    folder: Path, config: PicturesConfig, pipeline: StableDiffusionPipeline, prompts: Sequence[str]
) -> list[Path]:
    """Shards of text states, in the order of `prompts`."""
    state = PartialState()
    encoder = pipeline.text_encoder.to(state.device)
    paths = [folder / f"texts-{i:05}.safetensors" for i in range(-(-len(prompts) // CAPTIONS))]
    mine = list(enumerate(paths))[state.process_index :: state.num_processes]
    for i, path in tqdm([(i, p) for i, p in mine if not p.exists()], desc="texts", unit="shard", disable=None):
        shard = prompts[i * CAPTIONS : (i + 1) * CAPTIONS]
        ids = pad_ids(pipeline.tokenizer, shard)
        _warn_of_long(pipeline.tokenizer, shard, ids)
        with replacing(path) as temporary:
            parts = [_states(encoder, part.to(state.device)) for part in ids.split(TEXTS)]
            save_file({"states": torch.cat(parts).to(TORCH[config.cache_dtype])}, temporary)
    state.wait_for_everyone()
    return paths


def _warn_of_long(tokenizer: CLIPTokenizer, texts: Sequence[str], ids: Tensor) -> None:
    """On stderr, of texts that were cut to the context of `ids` (N, T)."""
    full = [text for text, row in zip(texts, ids, strict=True) if row[-2] not in (tokenizer.pad_token_id, row[-1])]
    lengths = [len(found) for found in tokenizer(full, verbose=False).input_ids] if full else []
    long = [text for text, length in zip(full, lengths, strict=True) if length > ids.shape[1]]
    if long:
        print(
            f"{len(long)} of {len(texts)} captions have more than the {ids.shape[1]} tokens that the text encoder reads; "
            f"their ends are cut, as in '{long[0][:60]}…'",
            file=sys.stderr,
        )


def text_rows(config: PicturesConfig, pipeline: StableDiffusionPipeline, prompts: Sequence[str]) -> Stored:
    """The states (len(prompts), T, D) of prompts that belong to no data set, from disk or computed now."""
    made_from = [FORMAT, network_hash(pipeline.text_encoder), vocabulary_hash(pipeline.tokenizer), config.cache_dtype]
    name = hashlib.sha256(canonical([*made_from, list(prompts)])).hexdigest()[:16]
    return Stored.open(_texts(config.cache_dir / name, config, pipeline, prompts), "states")


@torch.no_grad()
def _states(encoder: nn.Module, ids: Tensor) -> Tensor:
    """(B, T) → (B, T, D) float32, on the CPU."""
    return encoder(ids).last_hidden_state.float().cpu()


def fingerprint(data: str, revision: str | None) -> str:
    """What a data set is known by: a file's content; a folder's names, sizes and times; a hub id's revision."""
    path = Path(data)
    if path.is_file():
        return sha256(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        stats = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha256(canonical(stats)).hexdigest()
    return f"{data}@{revision}"


def network_hash(network: nn.Module) -> str:
    """SHA-256 over weights and settings: scaling and activations change what is computed as weights do."""
    known = dict(network.config) if isinstance(network.config, dict) else network.config.to_dict()
    settings = {name: value for name, value in known.items() if not name.startswith("_") and "version" not in name}
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(f"{weights_hash(network)} {text}".encode()).hexdigest()


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over names and values."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def vocabulary_hash(tokenizer: CLIPTokenizer) -> str:
    """SHA-256 over tokens and ids."""
    return hashlib.sha256(canonical(tokenizer.get_vocab())).hexdigest()
