"""What the package promises: its verbs, and to leave alone other people's imports and precision."""

import ast
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import fitting

ROOM = Path(__file__).parents[2] / "fitting"
VERBS = (
    *("read_runs", "write_runs", "fit", "fit_many", "cross_validate", "extrapolate", "compare"),
    *("ablate", "frontier", "elasticity", "star_sweep", "isoflop_sweep"),
)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOM.parent)


@pytest.mark.parametrize(
    "module", ["", ".config", ".sweeps", ".cost", ".runs", ".forms", ".frontier", ".elasticity"]
)
def test_imports_without_jax_and_matplotlib(module):
    run(
        "import sys\n"
        "sys.modules['jax'] = sys.modules['matplotlib'] = None\n"
        f"import fitting{module}\n"
    )


def test_every_export_exists():
    for name in fitting.__all__:
        assert getattr(fitting, name) is not None
    assert set(dir(fitting)) >= {*VERBS, "BaggedFit", "FitConfig", "plots", "config"}
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = fitting.no_such_name


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_a_function_of_the_package(name):
    assert isinstance(getattr(fitting, name), FunctionType)


@pytest.mark.parametrize("first", ["fitting.fit", "fitting.frontier", "fitting.elasticity"])
def test_importing_a_module_does_not_hide_the_verb_of_its_name(first):
    verb = first.split(".")[1]
    run(
        f"import fitting, sys\n"
        f"import {first}\n"
        f"from fitting import {verb}\n"
        f"from {first} import {verb} as same\n"
        f"assert fitting.{verb} is {verb} is same is sys.modules['{first}'].{verb}\n"
        f"assert callable({verb})\n"
        "from fitting.law import BaggedFit\n"
        "assert fitting.BaggedFit is BaggedFit\n"
        "import fitting.config\n"
        "assert fitting.config is sys.modules['fitting.config']\n"
    )


def test_modules_without_a_verb_are_modules():
    for name in ("config", "plots", "runs", "sweeps", "selection", "forms"):
        assert isinstance(getattr(fitting, name), ModuleType)


def test_never_imports_the_model_library():
    files = sorted(ROOM.rglob("*.py"))
    assert len(files) > 10
    for path in files:
        assert not [name for name in imports(path) if name.startswith(("vvlm_jax", "torch"))], path


def test_jaxopt_is_imported_in_one_place():
    assert [p.name for p in ROOM.rglob("*.py") if "jaxopt" in imports(p)] == ["solve.py"]
