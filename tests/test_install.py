"""`pip install .` gives the command `vvlm` and nothing named `tools` or `configs`."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
INSTALLED_AS = {
    "vvlm_jax": "vvlm_jax",
    "fitting": "fitting",
    "tools": "vvlm",
    "configs": "vvlm/configs",
}
NOT_INSTALLED = "tools/bench"
PROBE = "vvlm/configs/parts/probe.npz"  # stands for pretrained parts, which may or may not ship


def sources():
    """Return {path in a wheel: path in the tree} of every Python file and every table."""
    files = {}
    for tree, name in INSTALLED_AS.items():
        kinds = ("*.py", "*.csv", "parts/*.npz", "parts/*.json")
        for file in sorted(file for kind in kinds for file in (ROOT / tree).rglob(kind)):
            if not file.is_relative_to(ROOT / NOT_INSTALLED):
                files[f"{name}/{file.relative_to(ROOT / tree).as_posix()}"] = file
    return files


def pip(*words):
    command = [sys.executable, "-m", "pip", "--no-input", "--no-cache-dir", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel of this tree without network, from a copy without leftovers of other builds."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for tree in INSTALLED_AS:
        shutil.copytree(ROOT / tree, copy / tree, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / PROBE.replace("vvlm/", "")).parent.mkdir(exist_ok=True)
    (copy / PROBE.replace("vvlm/", "")).write_bytes(b"a part")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, copy)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return a folder that holds what `pip install .` puts into site-packages, and `bin/vvlm`."""
    target = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", target, wheel)
    return target


@pytest.fixture
def ask(installed, tmp_path):
    """Return ask(program, …), which runs an installed program in an empty folder -> its output."""

    def run(*words):
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_every_folder_with_python_files_is_a_package_of_pyproject():
    folders = {
        Path(path).parent.as_posix().replace("/", ".") for path in sources() if path.endswith(".py")
    }
    assert set(SETUPTOOLS["packages"]) == folders
    without = [str(p.parent) for p in sources().values() if not (p.parent / "__init__.py").exists()]
    assert [path for path in without if not path.endswith(("/data", "/parts"))] == []


def test_a_wheel_holds_every_module_and_no_general_names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {*sources(), PROBE}
    assert {name.split("/")[0] for name in names} == {"vvlm", "vvlm_jax", "fitting"}


def test_the_command_lists_its_commands_outside_a_checkout(ask, installed):
    shown = ask("-c", "import vvlm, fitting, vvlm_jax; print(vvlm, fitting, vvlm_jax)")
    assert shown.count(str(installed)) == 3, shown  # and not those of the checkout
    listed = ask(installed / "bin" / "vvlm", "--help")
    for file in (ROOT / "tools").glob("*.py"):
        if "def cli(" in file.read_text():
            assert f"  {file.stem} " in listed
    missing = ask(
        "-c", "import importlib.util as u; print(u.find_spec('tools'), u.find_spec('configs'))"
    )
    assert missing == "None None\n"


def test_a_law_is_fitted_in_an_empty_folder(ask, installed, tmp_path):
    shutil.copy(installed / "fitting" / "data" / "li2024.csv", tmp_path / "runs.csv")
    shown = ask(
        installed / "bin" / "vvlm", "fit", "runs.csv", "--factors", "lm_params,visual_tokens",
        "--error", "error", "--scale", "1", "--form", "li", "--space", "linear",
        "--resamples", "2", "--starts", "4",
    )  # fmt: skip
    assert "runs/fit/fit.json" in shown
    assert (tmp_path / "runs" / "fit" / "fit.json").is_file()


def test_pretrained_parts_are_looked_for_where_they_are_installed(ask, installed):
    shown = ask("-c", "from vvlm.study import parts; print(parts.SHIPPED)")
    assert Path(shown.strip()) == (installed / PROBE).parent
    assert (installed / PROBE).read_bytes() == b"a part"


def test_a_shipped_config_is_found_by_name(ask, installed):
    shown = ask(installed / "bin" / "vvlm", "sweep", "plan", "sweeps/star")
    assert "39" in shown
