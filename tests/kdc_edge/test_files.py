import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kdc_edge import files
from kdc_edge.errors import BundleError, ResourceError, UsageError
from kdc_edge.files import read_json, recover, replace_dir, replace_file, replacing, sha256, write_json

WRITER = """
import sys, time
from pathlib import Path
from kdc_edge.files import replace_dir
with replace_dir(Path(sys.argv[1]), force=True) as folder:
    (folder / "half.json").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def make(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(text)
    return folder


def start_writer(target: Path) -> subprocess.Popen:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "ready\n"
    return writer


def kill(writer: subprocess.Popen) -> None:
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()


def test_sha256_is_the_standard_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_there_and_back(tmp_path):
    data = {"a": [1, 2.5, None, "é😀"], "b": {"c": True}}
    write_json(tmp_path / "x.json", data)
    assert read_json(tmp_path / "x.json") == data
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "1e999 is too large a number"),
        (b'{"a": ', "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    ],
)
def test_json_is_strict(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(BundleError, match=message) as caught:
        read_json(tmp_path / "x.json")
    assert str(tmp_path / "x.json") in str(caught.value)


def test_missing_json(tmp_path):
    with pytest.raises(BundleError, match="no such file"):
        read_json(tmp_path / "x.json")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "state"
    replace_file(path, b"one")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"tw")
        raise RuntimeError
    assert path.read_bytes() == b"one" and hidden(path.parent) == []
    replace_file(path, b"two")
    assert path.read_bytes() == b"two" and hidden(path.parent) == []


def test_outputs_have_the_permissions_of_ordinary_files(tmp_path):
    umask = os.umask(0)
    os.umask(umask)
    replace_file(tmp_path / "file", b"")
    with replace_dir(tmp_path / "folder", force=False):
        pass
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


def test_a_link_to_a_file_keeps_being_one(tmp_path):
    replace_file(tmp_path / "real", b"one")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    replace_file(tmp_path / "link", b"two")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"two"


def test_a_folder_appears_when_complete(tmp_path):
    target = tmp_path / "new" / "out"
    with replace_dir(target, force=False) as folder:
        (folder / "a").write_text("a")
        assert not target.exists()
    assert (target / "a").read_text() == "a" and hidden(target.parent) == []


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), replace_dir(tmp_path / "out", force=False) as folder:
        (folder / "a").write_text("a")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_and_an_empty_one_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    with replace_dir(tmp_path / "empty", force=False) as folder:
        (folder / "a.json").write_text("a")
    with pytest.raises(UsageError, match=r"exists; .*--force"), replace_dir(tmp_path / "empty", force=False):
        pytest.fail("the block must not run")
    with pytest.raises(UsageError, match="exists"), replace_dir(tmp_path / "empty" / "a.json", force=False):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("atomic", [True, False])
def test_force_exchanges(tmp_path, monkeypatch, atomic):
    if not atomic:
        monkeypatch.setattr(files, "_swap", lambda a, b: False)
    target = make(tmp_path / "out", "old")
    with replace_dir(target, force=True) as folder:
        (folder / "manifest.json").write_text("new")
        assert (target / "manifest.json").read_text() == "old"
    assert (target / "manifest.json").read_text() == "new" and hidden(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_the_exchange_is_atomic_here(tmp_path):
    a, b = make(tmp_path / "a", "a"), make(tmp_path / "b", "b")
    assert files._swap(a, b)
    assert (a / "manifest.json").read_text() == "b" and (b / "manifest.json").read_text() == "a"


def test_force_leaves_other_peoples_folders_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    (tmp_path / "photos" / "package.json").write_text("{}")
    with pytest.raises(UsageError, match="remove it yourself"), replace_dir(tmp_path / "photos", force=True):
        pytest.fail("the block must not run")


def test_recovery_between_the_two_renames(tmp_path):
    target = make(tmp_path / "out", "old")
    target.rename(tmp_path / ".out.previous")
    recover(target)
    assert (target / "manifest.json").read_text() == "old" and hidden(tmp_path) == []


def test_recovery_after_the_two_renames(tmp_path):
    target = make(tmp_path / "out", "new")
    make(tmp_path / ".out.previous", "old")
    recover(target)
    assert (target / "manifest.json").read_text() == "new" and hidden(tmp_path) == []


def test_a_kill_loses_nothing_and_the_next_writer_cleans_up(tmp_path):
    target = make(tmp_path / "out", "old")
    kill(start_writer(target))
    assert (target / "manifest.json").read_text() == "old"
    assert len(hidden(tmp_path)) == 1
    with replace_dir(target, force=True) as folder:
        (folder / "manifest.json").write_text("new")
    assert (target / "manifest.json").read_text() == "new" and hidden(tmp_path) == []


def test_a_living_writer_is_left_in_peace(tmp_path):
    target = make(tmp_path / "out", "old")
    writer = start_writer(target)
    try:
        with replace_dir(target, force=True) as folder:
            (folder / "manifest.json").write_text("new")
        assert [path.name for path in tmp_path.glob(".out.*/half.json")] == ["half.json"]
    finally:
        kill(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    with pytest.raises(ResourceError, match="disk is full"), replace_dir(tmp_path / "out", force=False) as folder:
        (folder / "a").write_text("a")
        Path("/dev/full").write_bytes(b"b")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    replace_file(tmp_path / "state", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="disk is full"):
        replace_file(tmp_path / "state", b"new")
    assert (tmp_path / "state").read_bytes() == b"old" and hidden(tmp_path) == []


def test_a_full_disk_seen_through_a_library():
    assert files.disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert files.disk_full(OSError(errno.EDQUOT, "quota"))
    assert not files.disk_full(OSError(errno.EACCES, "no"))


def test_written_json_is_utf8(tmp_path):
    write_json(tmp_path / "x.json", {"é": 1})
    assert json.loads((tmp_path / "x.json").read_bytes().decode("utf-8")) == {"é": 1}
