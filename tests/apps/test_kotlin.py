"""The Kotlin modules compile without a warning and their JVM tests pass; what they measure goes to the judge.

kotlinc comes with `npm ci --prefix apps` or is on PATH; JUnit 4 is Debian's junit4. Where KDC_ONNXRUNTIME_JAR names
onnxruntime's jar for this machine (1.18 or later), the bundle is drawn and judged, too.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kdc_edge import conformance, golden
from kdc_edge.bundle import Bundle
from kdc_edge.pipeline import DEFAULT_BUNDLE
from tests.apps.test_embedding import snippet

ROOT = Path(__file__).parents[2]
ANDROID = ROOT / "apps" / "android"
JUNIT = [Path("/usr/share/java/junit4.jar"), Path("/usr/share/java/hamcrest-core.jar")]
NO_NETWORK = [name for name, stage in conformance.STAGES.items() if stage.tolerance != "stored"]


MAIN = "\nfun main(words: Array<String>) = println(draw(File(words[0])).rgb.size)\n"


def distribution():
    """kotlinc's folder, or a skip that says what is missing."""
    installed = ROOT / "apps" / "node_modules" / "kotlin-compiler"
    on_path = shutil.which("kotlinc")
    home = installed if installed.is_dir() else Path(on_path).resolve().parents[1] if on_path else None
    if home is None or shutil.which("java") is None:
        pytest.skip("no Kotlin compiler: npm ci --prefix apps, and a Java runtime of 17 or later")
    if missing := [jar for jar in JUNIT if not jar.exists()]:
        pytest.skip(f"no {missing[0]}: apt-get install junit4")
    return home


def run(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """core, and ort where onnxruntime is, compiled with their tests: the folder and the class path."""
    home, out = distribution(), tmp_path_factory.mktemp("kotlin")
    onnxruntime = [Path(os.environ["KDC_ONNXRUNTIME_JAR"])] if "KDC_ONNXRUNTIME_JAR" in os.environ else []
    jars = [home / "lib" / f"kotlin-{name}.jar" for name in ("stdlib", "test", "test-junit")] + JUNIT + onnxruntime
    modules = ["core", *(["ort"] if onnxruntime else [])]
    quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]  # one short run: compiled twice is time lost
    compiler = [
        "java",
        *quick,
        "-cp",
        home / "lib" / "kotlin-compiler.jar",
        "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
    ]
    flags = ["-kotlin-home", home, "-no-stdlib", "-no-reflect", "-jvm-target", "17", "-Werror"]
    path = os.pathsep.join(map(str, jars))
    sources = [ANDROID / name / "src" for name in modules]
    if onnxruntime:
        (out / "Snippet.kt").write_text(snippet("kotlin") + MAIN, encoding="utf-8")
        sources.append(out / "Snippet.kt")
    run([*compiler, *flags, "-cp", path, "-d", out / "classes", *sources])
    return out, f"{out / 'classes'}{os.pathsep}{path}"


def java_options():
    """For example where onnxruntime's native library lies."""
    return os.environ.get("KDC_JAVA_OPTIONS", "").split()


def junit(classes, results, *tests):
    _, path = classes
    bundle = Bundle.open(DEFAULT_BUNDLE)
    told = {"bundle": bundle.path, "id": bundle.id, "vectors": ROOT / "apps" / "vectors.json", "results": results}
    properties = [f"-Dkdc.{name}={value}" for name, value in told.items()]
    printed = run(["java", *java_options(), *properties, "-cp", path, "org.junit.runner.JUnitCore", *tests])
    assert "OK (" in printed
    app, arrays = conformance.read(results, bundle.id)
    return app, conformance.judge(golden.read(bundle), arrays)


def test_core(classes):
    tests = [f"dev.kdcedge.core.{name}" for name in ("VectorsTest", "BundleTest", "PipelineTest")]
    app, verdicts = junit(classes, classes[0] / "core.json", *tests)
    assert app == "the tests, fake"
    assert [verdict.stage for verdict in verdicts if verdict.state == "passed"] == NO_NETWORK


def test_ort_draws_and_conforms(classes):
    if "KDC_ONNXRUNTIME_JAR" not in os.environ:
        pytest.skip("KDC_ONNXRUNTIME_JAR does not name onnxruntime's Java library")
    app, verdicts = junit(classes, classes[0] / "ort.json", "dev.kdcedge.ort.OrtTest")
    assert app == "the tests, onnxruntime on the JVM"
    conformance.gate(verdicts)
    printed = run(["java", *java_options(), "-cp", classes[1], "SnippetKt", DEFAULT_BUNDLE])
    assert printed.splitlines() == [*(f"{i} of 4" for i in range(5)), str(3 * 64 * 64)]
