"""The house's own rules: who imports whom, what import costs, that the documentation's commands and links are real."""

import ast
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("train", "convert", "bench", "apps")
PACKAGES = ("kdc_edge", *STAGES)
TOOLCHAINS = {
    "torch", "diffusers", "transformers", "accelerate", "datasets", "onnx", "onnxscript", "onnxruntime", "openvino",
    "coremltools", "tensorrt", "tensorrt_rtx", "cuda",
}  # fmt: skip
CORE = {"numpy", "tokenizers", "PIL", "safetensors", "tyro", "tqdm"}
MAX_LINES, MAX_FUNCTION = 400, 60
FORBIDDEN = re.compile(r"/work/|/root/|/home/\w|\.\./shared|issues? ?#\d|\bXXX\b|\bFIXME\b|\bTODO\b", re.IGNORECASE)
COMMAND = re.compile(r"^\s*(?:\$ )?((?:python3? -m (?:train|convert|bench|apps)\b|kdc-edge\b).*)$")
LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)\s#]+)")
HELP_SECONDS = 3.0  # one second is the promise; a busy machine gets room


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def documents() -> list[Path]:
    pages = ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "apps").glob("*/README.md")
    return sorted(path for path in pages if path.exists())


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Dotted modules named by absolute import statements."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes executed when the module is imported: not function bodies, not `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import(child)


def roots(modules: set[str]) -> set[str]:
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=name_of)
def test_stages_meet_in_folders_not_by_import(path: Path):
    package = path.relative_to(ROOT).parts[0]
    if package == "bench" and path.name.startswith("test_"):
        return
    allowed = {package, "kdc_edge"}
    assert not roots(imported(ast.walk(tree(path)))) & set(PACKAGES) - allowed


@pytest.mark.parametrize("path", sources("kdc_edge"), ids=name_of)
def test_the_device_package_imports_its_core_only(path: Path):
    """torch_ref may import PyTorch at the top; a runtime or a command names its toolchain inside functions."""
    if "torch_ref" in path.parts:
        return
    assert roots(imported(at_import(tree(path)))) <= CORE | {"kdc_edge"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sources("kdc_edge", "bench"), ids=name_of)
def test_what_runs_on_a_jetson_is_python_3_10(path: Path):
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    assert not imported(ast.walk(tree(path))) & {"tomllib", "typing.Self"}


def test_torch_ref_is_the_only_place_of_the_device_package_that_names_torch():
    namers = {path for path in sources("kdc_edge") if "torch" in roots(imported(ast.walk(tree(path))))}
    assert all("torch_ref" in path.parts for path in namers)


@pytest.mark.parametrize("path", sources(*PACKAGES, "tests"), ids=name_of)
def test_a_file_reads_in_one_sitting(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            assert node.end_lineno - node.lineno < MAX_FUNCTION, f"{node.name} is longer than {MAX_FUNCTION} lines"


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=name_of)
def test_every_module_says_what_it_is(path: Path):
    assert ast.get_docstring(tree(path))


def texts() -> list[Path]:
    """Everything a reader of the repository reads, this file (which spells the words) left out."""
    named = [ROOT / name for name in ("Makefile", "pyproject.toml", "constraints.txt", ".gitignore", ".ci/run")]
    return [p for p in (*sources(*PACKAGES, "tests"), *documents(), *named) if p != Path(__file__).resolve()]


@pytest.mark.parametrize("path", texts(), ids=name_of)
def test_the_project_speaks_of_itself_alone(path: Path):
    found = FORBIDDEN.search(path.read_text(encoding="utf-8"))
    assert not found, f"says {found.group()!r}" if found else ""


def run_python(*args: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env, cwd=ROOT, timeout=60)


@pytest.mark.parametrize("module", ["kdc_edge", "kdc_edge.cli", *STAGES])
def test_import_is_lean(module: str):
    code = f"import sys, {module}; print(sorted({TOOLCHAINS!r} & set(sys.modules)))"
    done = run_python("-W", "error", "-c", code)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def commands() -> list[str]:
    """Modules to run with `python -m`: those that end in `if __name__ == "__main__"`, and `__main__.py`."""
    found = []
    for path in sources(*PACKAGES):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name == "__main__.py":
            found.append(module.removesuffix(".__main__"))
        elif any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree(path).body):
            found.append(module)
    return found


@pytest.mark.parametrize("module", commands())
def test_help_answers_at_once_and_without_a_toolchain(module: str):
    code = (
        "import atexit, runpy, sys; sys.argv = ['x', '--help'];"
        f"atexit.register(lambda: print('loaded', sorted({TOOLCHAINS!r} & set(sys.modules)), file=sys.stderr));"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    start = time.monotonic()
    done = run_python("-c", code)
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
    assert done.stderr.strip().endswith("loaded []")
    assert seconds < HELP_SECONDS


def documented() -> list[tuple[str, str]]:
    """(document, command) for every project command line in a fenced block, continuation lines joined, or in a docstring."""
    found = []
    for path in documents():
        for block in re.findall(r"^```[^\n]*\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(name_of(path), match.group(1)) for line in lines if (match := COMMAND.match(line))]
    for path in sources(*PACKAGES):
        lines = (line.strip() for line in (ast.get_docstring(tree(path)) or "").splitlines())
        found += [(name_of(path), match.group(1)) for line in lines if (match := COMMAND.match(line))]
    return found


@cache
def help_text(program: tuple[str, ...]) -> str:
    done = run_python(*program, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


def program_and_flags(command: str) -> tuple[tuple[str, ...], list[str]]:
    """Arguments for Python up to the subcommand, and the long flags used after it."""
    words = shlex.split(command.split(" #")[0].split(" | ")[0].split(" > ")[0].split(" && ")[0], comments=True)
    head = ["-m", "kdc_edge"] if words[0] == "kdc-edge" else words[1:3]
    rest = words[1:] if words[0] == "kdc-edge" else words[3:]
    if rest and re.fullmatch(r"[a-z-]+", rest[0]) and not rest[0].startswith("-") and head[-1] in ("kdc_edge", "bench"):
        head = [*head, rest[0]]
        rest = rest[1:]
    return tuple(head), [word.split("=")[0] for word in rest if re.match("--?[a-z]", word)]


@pytest.mark.parametrize(("document", "command"), documented())
def test_documented_commands_exist_with_the_flags_they_use(document: str, command: str):
    program, flags = program_and_flags(command)
    shown = help_text(program)
    assert [flag for flag in flags if not re.search(rf"(?<![\w-]){flag}\b", shown)] == []


@pytest.mark.parametrize("path", documents(), ids=name_of)
def test_relative_links_resolve(path: Path):
    broken = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if not (path.parent / link).exists()]
    assert broken == []
