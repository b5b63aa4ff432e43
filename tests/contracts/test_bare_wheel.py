"""The wheel alone, in an empty folder: it holds what it needs, and asks for no extra."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = ("pynetdicom", "highdicom", "fastapi", "ray", "mlflow", "tensorboard", "sphinx", "pytest", "hypothesis")

SCRIPT = """
import json, pkgutil, sys
from importlib import import_module
import pneumoscope
names = []
for module in pkgutil.iter_modules(pneumoscope.__path__, "pneumoscope."):
    if module.name == "pneumoscope.serving":  # needs the extra serve
        continue
    names.append(module.name)
    if module.ispkg:
        inside = import_module(module.name).__path__
        names += [found.name for found in pkgutil.walk_packages(inside, f"{module.name}.")]
for name in names:
    if not name.startswith("pneumoscope.serving."):  # the one room that needs an extra
        import_module(name)
from pneumoscope.cli import main
sys.argv = ["pneumoscope", "predict", sys.argv[1], "--bundle", sys.argv[2], "--jsonl", "line.jsonl"]
code = None
try:
    main()
except SystemExit as stop:
    code = stop.code
found = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"file": pneumoscope.__file__, "names": names, "code": code, "found": found}))
"""


def run(*command: object, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    if find_spec("hatchling") and find_spec("build"):
        done = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT)
    else:
        done = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", out, ROOT)
        if done.returncode and "hatchling" in done.stderr + done.stdout:
            pytest.skip("hatchling is not installed, and pip cannot fetch it here")
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_it_holds_the_package_and_its_data_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert all(top == "pneumoscope" or top.endswith(".dist-info") for top in tops), tops
    packaged = {name for name in names if name.startswith("pneumoscope/")}
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "pneumoscope").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    source |= {f"pneumoscope/configs/{path.name}" for path in (ROOT / "configs").glob("*.toml")}
    assert packaged == source
    assert "pneumoscope/py.typed" in packaged
    assert any(name.endswith(".j2") for name in packaged)


def test_alone_it_imports_every_module_and_predicts(
    wheel: Path, chests: Path, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    target, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    done = run(sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", target, wheel)
    assert done.returncode == 0, done.stderr
    image = next((chests / "test" / "NORMAL").glob("*.png"))
    bundle = make_bundle(tmp_path / "bundle")
    # -P keeps the folder of the script out of the path; the dependencies come from this environment.
    done = run(
        sys.executable, "-P", "-c", SCRIPT, image, bundle,
        cwd=empty, env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin", "HOME": str(empty)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert Path(told["file"]).is_relative_to(target), "the wheel, not the checkout, must have been imported"
    modules = {path.relative_to(ROOT / "src").with_suffix("") for path in (ROOT / "src").rglob("*.py")}
    expected = {".".join(module.parts).removesuffix(".__init__") for module in modules} - {"pneumoscope"}
    assert set(told["names"]) == {name for name in expected if not name.startswith("pneumoscope.serving")}
    assert told["code"] == 0
    assert json.loads((empty / "line.jsonl").read_text())["probability"] is not None
    assert [extra for extra in EXTRAS if extra in told["found"]] == []


def test_prediction_loads_neither_pytorch_nor_telemetry(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    program = (
        "import sys; from pathlib import Path; from pneumoscope.predict import Classifier;"
        f"import numpy as np; c = Classifier.load(Path({str(bundle)!r}), engine='openvino');"
        "side = c.bundle.preparation.canvas; c.logits(np.zeros((1, side, side), np.uint8));"
        "print([m for m in ('torch', 'timm', 'openvino_telemetry') if sys.modules.get(m)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
