"""What the package promises to leave alone: other people's imports, precision and packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[2] / "fitting"


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(
    "module", ["", ".config", ".sweeps", ".cost", ".runs", ".forms", ".frontier", ".elasticity"]
)
def test_imports_without_jax_and_matplotlib(module):
    code = (
        "import sys\n"
        "sys.modules['jax'] = sys.modules['matplotlib'] = None\n"
        f"import fitting{module}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOM.parent)


def test_every_export_exists():
    import fitting

    for name in fitting.__all__:
        assert getattr(fitting, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = fitting.no_such_name


def test_never_imports_the_model_library():
    files = sorted(ROOM.glob("*.py"))
    assert len(files) > 10
    for path in files:
        assert not [name for name in imports(path) if name.startswith(("vvlm_jax", "torch"))], path


def test_jaxopt_is_imported_in_one_place():
    assert [p.name for p in ROOM.glob("*.py") if "jaxopt" in imports(p)] == ["solve.py"]
