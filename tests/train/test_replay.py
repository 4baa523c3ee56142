"""The buffer: within its bytes, whole after a kill, merged, audited, forgotten on request."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from kdc_edge import cli, replay
from kdc_edge.errors import BundleError, ResourceError, UsageError
from kdc_edge.files import locked, replace_file
from kdc_edge.replay import FILE, hexadecimal
from tests.train.test_loop import ROOT
from tests.train.test_policies import LATENT, kept, offer
from train import autoencoder
from train import buffer as command
from train import replay as module
from train.data import Pictures
from train.folders import load_pipeline
from train.policies import POLICIES
from train.replay import Buffer, Scaled, encode, new_about
from train.rules import in_words, parse_bytes
from train.sequences import BufferConfig

EMOJI = (16, 8, 8)


def empty(limit: int = 10**5, latent: tuple[int, ...] = LATENT, **changes: object) -> Buffer:
    settings = {"store": "int8", "policy": "reservoir", "seed": 0} | changes
    return Buffer.empty(new_about("vae", "vocabulary", latent, (), limit=limit, **settings))


def test_bytes_in_words() -> None:
    wanted = {"64MiB": 2**26, "1.5 KB": 1500, "5000": 5000, "2gib": 2**31, "0": 0}
    assert {text: parse_bytes(text) for text in wanted} == wanted
    assert [in_words(count) for count in (2**26, 105_000, 1500, 31_234)] == ["64MiB", "105KB", "1500B", "31234B"]
    for text in ("64 apples", "-5MB", "", "MiB", "1e6"):
        with pytest.raises(UsageError, match="no number of bytes"):
            parse_bytes(text)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("store", ["int8", "fp16", "captions"])
def test_the_file_never_has_more_bytes_than_the_limit(policy: str, store: str, tmp_path: Path) -> None:
    """Captions in other alphabets and with quotes; three limits, four tasks each."""
    rng = np.random.RandomState(0)
    for limit in (2500, 7001, 30_000):
        buffer = empty(limit, policy=policy, store=store)
        for name in ("a", "b\"'\\", "日本語", "c"):
            texts = ['é"日\\'[i % 4] * rng.randint(1, 12) + str(i) for i in range(120)]
            buffer = buffer.take(offer(name, 120, texts)).save(tmp_path / f"{limit}")
            size = (tmp_path / f"{limit}" / FILE).stat().st_size
            assert size == buffer.contents.bytes <= limit
            assert buffer.about.captions
            assert (len(buffer) == 0) == (store == "captions")
        if limit == 7001:
            assert size > 0.6 * limit, "full, but for what a header may take"


def test_what_is_read_is_what_was_given(tmp_path: Path) -> None:
    latents = torch.randn(30, *EMOJI, generator=torch.Generator().manual_seed(0))
    given = replace(offer("a", 30), latents=latents)
    buffer = empty(10**6, EMOJI).take(given).save(tmp_path)
    columns = buffer.contents.columns
    assert isinstance(columns["latents"], np.memmap) and kept(buffer) == set(given.pictures)
    index = torch.tensor([3, 0, 3])
    rows = Scaled(columns["latents"], columns["scales"])[index]
    places = [given.pictures.index(hexadecimal(columns["pictures"])[i]) for i in index]
    assert torch.allclose(rows, latents[places], atol=0.02)
    texts = [buffer.about.captions[columns["caption"][i]] for i in index]
    assert texts == [given.captions[i] for i in places]


def test_what_int8_costs() -> None:
    """dB of signal to noise on unit Gaussian latents: 42 by the closed form 12·(127 / peak)², 70 and more for fp16."""
    latents = np.random.RandomState(0).randn(64, *EMOJI).astype(np.float32)

    def snr(store: str) -> float:
        values, scales = encode(latents, store)
        error = Scaled(values, scales)[torch.arange(64)].numpy() - latents
        return float(10 * np.log10((latents**2).mean() / (error**2).mean()))

    peak = np.abs(latents).reshape(64, -1).max(1)
    assert snr("int8") == pytest.approx(-10 * np.log10(((peak / 127) ** 2 / 12).mean()), abs=0.3)
    assert 41 < snr("int8") < 43 and snr("fp16") > 70
    zeros, scales = encode(np.zeros((1, *EMOJI), np.float32), "int8")
    assert not Scaled(zeros, scales)[torch.tensor([0])].any()


def test_what_int8_costs_in_pictures(emoji: Pictures) -> None:
    """The shipped autoencoder on 128 emoji: PSNR of what is decoded from stored latents."""
    vae = load_pipeline(str(ROOT / "assets" / "emoji-64" / "student")).vae
    pixels = emoji.select_index(np.linspace(0, len(emoji) - 1, 128, dtype=int)).tensor()
    latents = autoencoder.encode(vae, pixels)

    def psnr(kept: torch.Tensor) -> float:
        error = (autoencoder.decode(vae, kept) - autoencoder.to_float(pixels)).div(2).square().mean((1, 2, 3))
        return float(-10 * error.log10().mean())

    values, scales = encode(latents.numpy(), "int8")
    exact, kept = psnr(latents), psnr(Scaled(values, scales)[torch.arange(128)])
    print(f"\nPSNR {exact:.2f} dB from float32 latents, {kept:.2f} from int8")
    assert exact > 20 and abs(exact - kept) < 0.2


def test_a_limit_under_one_item_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--replay-memory is 2,000 bytes, with one item it takes 2,\d+; give more"):
        empty(2000, EMOJI)
    with pytest.raises(UsageError, match="give more"):
        empty(10**5, EMOJI).take(replace(offer("a", 2), latents=torch.zeros(2, *EMOJI))).under(2000)


def test_a_picture_is_taken_once() -> None:
    buffer = empty().take(offer("a", 10))
    again = buffer.take(replace(offer("a", 10), task="b"))
    assert kept(again) == kept(buffer) and len(again) == 10 and again.about.tasks == ("a", "b")


def test_forgetting_on_request(tmp_path: Path) -> None:
    texts = ["rose", "rose", *(f"flower {i}" for i in range(8))]
    given = offer("a", 10, texts)
    buffer = empty().take(given)
    less = buffer.remove([given.pictures[0], given.pictures[5][:8].upper()])
    assert kept(less) == set(given.pictures) - {given.pictures[0], given.pictures[5]}
    assert "rose" in less.about.captions and "flower 3" not in less.about.captions
    assert kept(less.remove(captions=["rose"])) == set(given.pictures[2:]) - {given.pictures[5]}
    less.save(tmp_path)
    assert bytes.fromhex(given.pictures[0]) not in (tmp_path / FILE).read_bytes()
    for wanted in ("0" * 64, given.pictures[1][:7]):
        with pytest.raises(UsageError, match="no picture"):
            buffer.remove([wanted])
    with pytest.raises(UsageError, match="no caption 'tulip'"):
        buffer.remove(captions=["tulip"])


def test_merging_knows_pictures_and_captions_that_both_have() -> None:
    shared, other = offer("a", 6), offer("b", 5)
    mine, theirs = empty().take(shared), empty(seed=3).take(other).take(replace(shared, task="c"))
    merged = mine.merge(theirs)
    assert kept(merged) == {*shared.pictures, *other.pictures} and merged.about.tasks == ("a", "b", "c")
    assert set(merged.about.captions) == {*shared.captions, *other.captions}
    columns = merged.contents.columns
    for i, picture in enumerate(hexadecimal(columns["pictures"])):
        of = shared if picture in shared.pictures else other
        assert merged.about.captions[columns["caption"][i]] == of.captions[of.pictures.index(picture)]
        assert merged.about.tasks[columns["task"][i]] == of.task
    for wrong in (
        replace(theirs.about, vae="x"),
        replace(theirs.about, vocabulary="x"),
        replace(theirs.about, store="fp16"),
    ):
        with pytest.raises(UsageError, match=r"was built with|holds"):
            mine.merge(Buffer(replace(theirs.contents, about=wrong)))


def test_the_command_inspects_removes_and_merges(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a, b = offer("a", 4), offer("b", 4)
    empty().take(a).save(tmp_path / "one")
    empty().take(b).save(tmp_path / "two")
    found = command.tend(BufferConfig(tmp_path / "one", remove=(a.pictures[0],), merge=(tmp_path / "two",)))
    assert (found["items"], found["items_before"], found["tasks"]) == (7, 4, ["a", "b"])
    both = BufferConfig(tmp_path / "one", remove=(b.pictures[1],), merge=(tmp_path / "two",))
    assert command.tend(both)["items"] == 6 and b.pictures[1] not in pictures(tmp_path / "one")
    assert command.tend(BufferConfig(tmp_path / "one", replay_memory="2200"))["bytes"] <= 2200
    with pytest.raises(SystemExit, match="0"):
        cli.main(["inspect", str(tmp_path / "two"), "--json"])
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["kind"] == "replay buffer" and shown["tasks"] == {"b": "4 latents, 4 captions"}
    assert shown["pictures"] == dict(zip(b.pictures, b.captions, strict=True))
    with locked(tmp_path / "two"), pytest.raises(UsageError, match="in use by another process"):
        command.tend(BufferConfig(tmp_path / "two", remove=(b.pictures[0],)))
    with pytest.raises(UsageError, match="nothing to do"):
        command.tend(BufferConfig(tmp_path / "two"))


def pictures(buffer: Path) -> list[str]:
    return hexadecimal(replay.read(buffer).columns["pictures"])


SAVING = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.train.test_replay import EMOJI, empty
from tests.train.test_policies import offer
import torch
buffer = empty(10**7, EMOJI)
print("ready", flush=True)
for i in range(10**6):
    given = offer(f"task {i % 7}", 300)
    empty(10**7, EMOJI).take(replace(given, latents=torch.ones(300, *EMOJI))).save(Path(sys.argv[1]))
    print(i, flush=True)
"""


def test_a_kill_while_it_is_written_leaves_a_whole_buffer(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(SAVING), str(tmp_path / "buffer")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT)
    assert process.stdout is not None
    while process.stdout.readline() != "0\n":
        assert process.poll() is None
    seen = set()
    for pause in (0.0, 0.013, 0.029, 0.041):  # looked at while it is being replaced
        time.sleep(pause)
        seen.add(Buffer.open(tmp_path / "buffer").about.tasks)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = Buffer.open(tmp_path / "buffer")
    assert len(found) == 300 and found.about.tasks[0].startswith("task ")
    assert (np.asarray(found.contents.columns["latents"]) == 127).all() and seen
    found.save(tmp_path / "buffer")  # which clears up what the killed one left
    assert [path.name for path in (tmp_path / "buffer").iterdir()] == [FILE]


def test_a_writer_between_two_openings_mixes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the file is opened it is replaced by the next of several versions of one size."""
    for number in range(6):
        given = offer(f"task {number}", 8, [f"{number} {i}" for i in range(8)])
        given = replace(given, latents=torch.full((8, *LATENT), float(number)))
        empty(store="fp16").take(given).save(tmp_path / str(number))
    versions, path = count(1), tmp_path / "0" / FILE

    def opened(self: Path, *args: object, **kwargs: object) -> IO:
        if self == path:
            replace_file(path, (tmp_path / str(next(versions)) / FILE).read_bytes())
        return open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    found = replay.read(path.parent)
    number = int(found.about.tasks[0].split()[1])
    assert all(text.startswith(f"{number} ") for text in found.about.captions)
    assert (found.columns["latents"] == number).all() and found.bytes == path.stat().st_size
    replace_file(path, (tmp_path / "5" / FILE).read_bytes())
    assert (found.columns["latents"] == number).all(), "what was read stays as it was"


def test_a_full_disk_leaves_the_old_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty().take(offer("a", 4)).save(tmp_path)
    before = (tmp_path / FILE).read_bytes()

    def full(columns: object, path: Path, about: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        Buffer.open(tmp_path).take(offer("b", 4)).save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    empty().take(offer("a", 4)).save(tmp_path)
    path, whole = tmp_path / FILE, (tmp_path / FILE).read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(BundleError, match="damaged"):
        replay.read(tmp_path)
    path.write_bytes(whole)
    with safe_open(path, "np") as file:
        columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["about"])
    wrong = {
        "format 2, this kdc-edge reads 1; update": (columns, about | {"format": 2}),
        "lacks scales": ({n: c for n, c in columns.items() if n != "scales"}, about),
        "points beyond": (columns | {"caption": columns["caption"] + 1}, about),
        "of different lengths": (columns | {"task": columns["task"][1:]}, about),
        r"latents are \(4, 2, 2\)": (columns, about | {"latent": [4, 4, 4]}),
        "did you mean 'limit'": (columns, about | {"limits": 3}),
    }
    for message, (tensors, said) in wrong.items():
        save_file(tensors, path, {"about": json.dumps(said)})
        with pytest.raises(BundleError, match=message):
            replay.read(tmp_path)
    path.unlink()
    with pytest.raises(BundleError, match="no such file"):
        replay.read(tmp_path)
