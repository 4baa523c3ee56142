"""The command, the folder that it writes, and the server: whole files, byte ranges, headers, exit codes."""

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from apps.web import site as sites
from apps.web.server import Server
from apps.web.site import STATIC, VENDOR
from kdc_edge.bundle import Bundle
from kdc_edge.errors import UsageError
from kdc_edge.pipeline import DEFAULT_BUNDLE
from tests.apps.web.conftest import serving
from tests.conftest import ROOT


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        return answer.status, answer.headers, answer.read()


def test_the_site_holds_what_is_used_and_no_more(site):
    names = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    bundle = {f"bundle/{name}" for name in sites.files_of(Bundle.open(DEFAULT_BUNDLE))}
    own = {path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file()}
    assert names == own | set(VENDOR) | bundle
    model = sum((site / name).stat().st_size for name in bundle)
    assert model <= 16e6


def test_the_service_worker_keeps_every_file_that_pages_start_with(site):
    line = next(line for line in (site / "sw.js").read_text().splitlines() if line.startswith("const VERSION"))
    kept = set(json.loads(line.partition("FILES = ")[2].rstrip(";")))
    assert {"index.html", "app.mjs", "core/worker.mjs", "vendor/ort/ort-wasm-simd-threaded.wasm"} <= kept
    assert not [name for name in kept if not (site / name).is_file() or name.startswith("bundle/")]


def test_no_page_or_module_names_another_host():
    for path in STATIC.rglob("*"):
        if path.suffix in (".html", ".css", ".js", ".mjs", ".webmanifest"):
            text = path.read_text(encoding="utf-8")
            assert "https://" not in text and "//cdn" not in text, path


@pytest.mark.parametrize("path", sorted(STATIC.rglob("*.mjs")), ids=lambda path: path.name)
def test_a_module_reads_in_one_sitting_and_says_what_it_is(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("// ")
    assert len(lines) <= 400
    assert max(map(len, lines)) <= 160


def test_the_server_isolates_pages_and_sends_ranges(site, url):
    status, headers, body = get(url)
    assert (status, headers["Content-Type"]) == (200, "text/html")
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert body == (STATIC / "index.html").read_bytes()
    status, headers, body = get(f"{url}bundle/unet/model.onnx", Range="bytes=9000000-")
    assert (status, body) == (206, (site / "bundle/unet/model.onnx").read_bytes()[9_000_000:])
    assert headers["Content-Range"].startswith("bytes 9000000-")
    assert get(f"{url}core/noise.mjs")[1]["Content-Type"] == "text/javascript"
    for path, asked in (("../../etc/passwd", {}), ("app.mjs", {"Range": "bytes=99999999-"})):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(url + path, **asked)
        assert refused.value.code in (404, 416)
        refused.value.close()


def test_a_port_that_is_taken_is_said(site):
    with Server(site, "127.0.0.1", 0) as server, pytest.raises(UsageError, match="choose another --port"):
        Server(site, "127.0.0.1", server.server_address[1])


def test_the_command_writes_a_folder_and_refuses_a_full_one(modules, tmp_path):
    done = run("apps.web", "-o", tmp_path / "site", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bundle"] == Bundle.open(DEFAULT_BUNDLE).id
    again = run("apps.web", "-o", tmp_path / "site")
    assert (again.returncode, "is not an empty folder" in again.stderr) == (2, True)


def test_without_the_npm_packages_it_says_how_to_get_them(tmp_path):
    done = run("apps.web", "-o", tmp_path / "site", "--node-modules", tmp_path)
    assert done.returncode == 3
    assert "npm ci --prefix apps" in done.stderr


def test_a_damaged_bundle_and_one_for_another_runtime_are_refused(tmp_path):
    copy = shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle")
    told = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**told, "runtime": "coreml"}))
    done = run("apps.web", "--bundle", copy, "-o", tmp_path / "site")
    assert (done.returncode, "python -m convert.onnx --target web" in done.stderr) == (5, True)
    (copy / "unet/model.onnx").write_bytes(b"x")
    assert run("apps.web", "--bundle", copy, "-o", tmp_path / "site").returncode == 5


def test_results_are_taken_where_somebody_waits_for_them(site):
    taken = []
    with serving(site, receive=taken.append) as url:
        request = urllib.request.Request(f"{url}results", data=b"{}", method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 204
    assert taken == [b"{}"]
