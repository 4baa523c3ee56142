"""What a bundle takes over from its checkpoint as it is: configs where diffusers' and optimum's loaders look for them, and
the tokenizer with all three of the files that one reader or another wants."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import BundleError
from kdc_edge.files import read_json, write_json
from kdc_edge.spec import FOLDERS

PARTS = {"scheduler", "text_encoder", "tokenizer", "unet", "vae"}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


def copy_configs(checkpoint: Checkpoint, folder: Path, components: Iterable[str]) -> None:
    """model_index.json without what a bundle has not (a safety checker), scheduler/ and each component's config.json."""
    copies = {
        "model_index.json": "model_index.json",
        "scheduler/scheduler_config.json": "scheduler/scheduler_config.json",
    }
    copies |= {f"{component}/config.json": f"{FOLDERS[component]}/config.json" for component in components}
    for target, source in copies.items():
        (folder / target).parent.mkdir(exist_ok=True)
        shutil.copyfile(checkpoint.path / source, folder / target)
    index = read_json(folder / "model_index.json")
    absent = {name for name, entry in index.items() if isinstance(entry, list) and any(entry)} - PARTS
    if absent:  # a safety checker, a feature extractor: loaders would look for their folders
        write_json(folder / "model_index.json", index | {name: [None, None] for name in absent})


def copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """tokenizer/ with tokenizer.json, vocab.json and merges.txt; what the checkpoint lacks is made from what it has."""
    target = folder / "tokenizer"
    target.mkdir()
    for name in TOKENIZER_FILES:
        if (source := checkpoint.path / "tokenizer" / name).exists():
            shutil.copyfile(source, target / name)
    if not (target / "tokenizer.json").exists():
        _write_fast(target)
    if not (target / "vocab.json").exists() or not (target / "merges.txt").exists():
        _write_slow(target)


def _write_fast(folder: Path) -> None:
    from kdc_edge.tokenizer import from_vocab

    from_vocab(folder).save(str(folder / "tokenizer.json"))


def _write_slow(folder: Path) -> None:
    model = read_json(folder / "tokenizer.json").get("model", {})
    if model.get("type") != "BPE":
        raise BundleError(f"{folder / 'tokenizer.json'}: model is {model.get('type')}, must be BPE")
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
