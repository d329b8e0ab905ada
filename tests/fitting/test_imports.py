"""The package's exports, what importing it loads, and which libraries it never imports."""

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
    "module", ["", ".config", ".sweeps", ".cost", ".runs", ".forms", ".frontiers", ".elasticities"]
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
    assert set(dir(fitting)) >= {*VERBS, "BaggedFit", "FitConfig"}
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = fitting.no_such_name


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_a_function_of_the_package(name):
    assert isinstance(getattr(fitting, name), FunctionType)


def test_no_module_hides_an_export():
    modules = {path.stem for path in ROOM.glob("*.py")} | {p.name for p in ROOM.iterdir()}
    assert not modules & set(fitting.__all__)
    run("import fitting.fits, fitting.frontiers, fitting; assert callable(fitting.fit)")


def test_modules_are_reached_through_the_package():
    for name in ("config", "figures", "runs", "sweeps", "validation", "forms"):
        assert isinstance(getattr(fitting, name), ModuleType)


def test_never_imports_the_model_library():
    files = sorted(ROOM.rglob("*.py"))
    assert len(files) > 10
    for path in files:
        assert not [name for name in imports(path) if name.startswith(("vvlm_jax", "torch"))], path


def test_jaxopt_is_imported_in_one_place():
    assert [p.name for p in ROOM.rglob("*.py") if "jaxopt" in imports(p)] == ["lbfgs.py"]
