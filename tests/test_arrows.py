"""The arrows between the rooms, read from the import statements and held.

A room is a module or a folder directly inside a package: `vvlm_jax.models`, `fitting.law`. A room
may import itself, the floors below its own, and its neighbours as long as no circle comes of it.
The checker works on source text, so that it can be tested on planted violations; the last part of
this file applies it to the tree.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TREES = ("vvlm_jax", "fitting", "configs", "tools")

# tools -> configs -> the two libraries, which never import each other.
TREE_MAY_IMPORT = {
    "vvlm_jax": {"vvlm_jax"},
    "fitting": {"fitting"},
    "configs": {"configs", "vvlm_jax", "fitting"},
    "tools": {"tools", "configs", "vvlm_jax", "fitting"},
}

# One row a floor, from the ground up. A room may import the floors below its own.
FLOORS = {
    "vvlm_jax": [
        "types config config_check override sharding devices distributed progress atomic "
        "exit_codes",
        "storage",
        "data models flops",
        "weights train generate",
        "eval compile costs",
        "sweep",
    ],
    "fitting": [
        "config atomic",
        "formatting verdict",
        "sweeps cost expressions readers run_files run_checks views grids extent "
        "forms naming own_forms link",
        "runs",
        "optimise bootstrap noise summary splits fit_folder law_file predictions",
        "law mixture mixing",
        "fits",
        "intervals profiles",
        "validation frontiers lack_of_fit",
        "ablations",
        "elasticities uncertainty regret",
        "next_runs",
        "design",
        "planner planner_text validation_text rivals",
        "planner_runs",
        "figures report",
    ],
}
# Rooms that see less than their floor does.
NARROWER = {
    "vvlm_jax.data": "types config config_check override progress atomic storage data",
    "vvlm_jax.models": "types config config_check sharding models",
    "fitting.sweeps": "config sweeps",
    "fitting.cost": "config cost expressions",
    "fitting.grids": "formatting grids",
}

NOWHERE = ("tensorflow", "tests", "jax.experimental.optimizers")
ONLY_IN = {
    "jaxopt": "fitting.optimise.lbfgs",
    "lmms_eval": "vvlm_jax.eval.lmms vvlm_jax.eval.lmms_entry",
    "submitit": "vvlm_jax.sweep.launch.slurm",
    "torch": "tools.bench.torch_train tools.bench.bench_model",  # what they measure against
}

# Modules that touch files or the network, and calls that do; vvlm_jax.models has none.
IO_MODULES = {"PIL", "av", "io", "os", "pathlib", "pickle", "shutil", "subprocess", "tempfile"}
IO_CALLS = {"open", "read_bytes", "read_text", "write_bytes", "write_text"}

# What must load without jax, beside configs and the packages' doors.
WITHOUT_JAX = (
    "vvlm_jax.config",
    "vvlm_jax.config_check",
    "vvlm_jax.override",
    "fitting.config",
)


def rooms_below(library):
    """Return {room: all rooms that it may import} for one library."""
    below, seen = {}, set()
    for floor in FLOORS[library]:
        seen |= set(floor.split())
        for room in floor.split():
            narrower = NARROWER.get(f"{library}.{room}")
            below[room] = set(narrower.split()) if narrower else set(seen)
    return below


MAY_IMPORT = {library: rooms_below(library) for library in FLOORS}


@dataclass(frozen=True)
class Import:
    """One name that a module imports: `from a.b import c` has target a.b.c."""

    target: str
    line: int

    @property
    def tree(self):
        return self.target.partition(".")[0]

    @property
    def room(self):
        """The part after the package, or None for the package itself."""
        return (self.target.split(".") + [None])[1]


def _targets(node, package):
    """Return the dotted names that one syntax node imports; `package` resolves leading dots."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        base = parts[: len(parts) - node.level + 1] if node.level else []
        stem = ".".join([*base, *([node.module] if node.module else [])])
        return [stem if alias.name == "*" else f"{stem}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call):
        function = ast.unparse(node.func).split(".")[-1]
        if function in ("import_module", "__import__") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                return [name.value]
    return []


def imports_of(source, module, is_package=False):
    """Return all imports in a module's source text, wherever they stand."""
    package = module if is_package else module.rpartition(".")[0]
    return [
        Import(target, node.lineno)
        for node in ast.walk(ast.parse(source))
        for target in _targets(node, package)
    ]


def _complaint_about(imported, module):
    """Return why `module` may not import this, or None."""
    tree, *rest = module.split(".")
    for name in NOWHERE:
        if f"{imported.target}.".startswith(f"{name}."):
            return "is imported nowhere outside the tests"
    home = ONLY_IN.get(imported.tree)
    if home is not None and module not in home.split():
        return f"is imported in {' and '.join(home.split())} alone"
    if imported.tree in TREES and imported.tree not in TREE_MAY_IMPORT[tree]:
        return f"is not for {tree}: tools -> configs -> the two libraries, which stay apart"
    if imported.tree == tree and tree in MAY_IMPORT and rest:
        if imported.room not in MAY_IMPORT[tree]:
            return "hides where it comes from: import from the module, not from the package"
        if rest[0] in MAY_IMPORT[tree] and imported.room not in MAY_IMPORT[tree][rest[0]]:
            return f"is not below {tree}.{rest[0]}"
    if module.startswith("vvlm_jax.models") and imported.tree in IO_MODULES:
        return "touches files or the network, and models does neither"
    return None


def violations(source, module, is_package=False):
    """Return what is wrong with one module as 'module:line: …', in the order of the file."""
    found = []
    for imported in imports_of(source, module, is_package):
        complaint = _complaint_about(imported, module)
        if complaint is not None:
            found.append((imported.line, f"{imported.target} {complaint}"))
    if module.startswith("vvlm_jax.models"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                if call.split(".")[-1] in IO_CALLS:
                    found.append((node.lineno, f"{call}() touches files, and models does not"))
    return [f"{module}:{line}: {what}" for line, what in sorted(found)]


def circle_of_rooms(sources, packages, library):
    """Return a circle among the rooms of a library as a list of their names, or None."""
    graph = {}
    for module, source in sources.items():
        tree, *rest = module.split(".")
        if tree == library and rest:
            below = graph.setdefault(rest[0], set())
            for imported in imports_of(source, module, module in packages):
                if imported.tree == library and imported.room != rest[0]:
                    below.add(imported.room)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def failures_without_jax(modules):
    """Import each of these with jax blocked, in a process of its own: {module: what it raised}."""
    code = """
import importlib, json, sys
sys.modules['jax'] = None
failed = {}
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except Exception as error:
        failed[module] = repr(error)
print(json.dumps(failed))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# The checker itself.


@pytest.mark.parametrize(
    ("module", "line", "why"),
    [
        ("vvlm_jax.train.loop", "import fitting.fits", "stay apart"),
        ("fitting.cost", "from vvlm_jax.flops import prefill", "stay apart"),
        ("vvlm_jax.sweep.jobs", "from configs import study", "not for vvlm_jax"),
        ("configs.study", "from tools.study import main", "not for configs"),
        ("vvlm_jax.models.vlm", "from vvlm_jax.train.loss import loss", "not below"),
        ("vvlm_jax.models.vlm", "from ..train import loss", "not below"),
        ("vvlm_jax.models.vlm", "from vvlm_jax.data.video import decode", "not below"),
        ("vvlm_jax.data.frames", "from vvlm_jax.sharding import mesh", "not below"),
        ("vvlm_jax.data.frames", "def f():\n    import vvlm_jax.models.vlm", "not below"),
        ("vvlm_jax.generate.generate", "import vvlm_jax.eval.answers", "not below"),
        ("fitting.fits", "from fitting import report", "not below"),
        ("fitting.fits", "from . import report", "not below"),
        (
            "fitting.fits",
            "import importlib\nimportlib.import_module('fitting.figures')",
            "not below",
        ),
        ("fitting.frontiers", "from fitting.uncertainty import decide", "not below"),
        ("fitting.sweeps", "from fitting.cost import flops", "not below"),
        ("fitting.fits", "from fitting import FitConfig", "hides where"),
        ("fitting.fits", "import fitting", "hides where"),
        ("fitting.fits", "import jaxopt", "alone"),
        ("vvlm_jax.eval.runner", "from lmms_eval import api", "alone"),
        ("vvlm_jax.weights.huggingface", "import torch", "bench_model alone"),
        ("tools.prepare", "import tensorflow as tf", "nowhere"),
        ("vvlm_jax.train.optim", "from jax.experimental import optimizers", "nowhere"),
        ("vvlm_jax.models.sovit", "import pathlib", "touches files"),
        ("vvlm_jax.models.sovit", "from PIL import Image", "touches files"),
        ("vvlm_jax.models.sovit", "weights = open('weights.npz')", "touches files"),
        ("vvlm_jax.models.sovit", "text = path.read_text()", "touches files"),
    ],
)
def test_a_planted_violation_is_caught(module, line, why):
    (found,) = violations(line, module)
    assert why in found
    assert found.startswith(f"{module}:")


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("vvlm_jax.models.vlm", "from vvlm_jax.models import sovit"),
        ("vvlm_jax.models.vlm", "from .llama import Llama"),
        ("vvlm_jax.train.step", "import jax\nfrom vvlm_jax.models.vlm import Vlm"),
        ("vvlm_jax.train.loop", "from vvlm_jax import flops"),
        ("fitting.optimise.lbfgs", "import jaxopt"),
        ("fitting.report.page", "from fitting.figures import curves"),
        ("tools.study", "import fitting\nfrom configs import study\nfrom vvlm_jax import flops"),
        ("tools.convert", "import tensorflow_datasets"),
    ],
)
def test_an_allowed_import_passes(module, line):
    assert violations(line, module) == []


def test_a_circle_between_neighbours_is_caught():
    sources = {
        "fitting.report.page": "from fitting import figures",
        "fitting.figures": "from fitting.report.page import text",
    }
    assert set(circle_of_rooms(sources, set(), "fitting")) == {"report", "figures"}
    sources["fitting.figures"] = "import matplotlib"
    assert circle_of_rooms(sources, set(), "fitting") is None


def test_loading_jax_is_noticed():
    failed = failures_without_jax(["json", "flax.linen", "fitting.optimise.search"])
    assert failed.keys() == {"flax.linen", "fitting.optimise.search"}


# The tree.


def read_tree():
    """Return all modules of the checkout, {dotted name: source}, and which are packages."""
    sources, packages = {}, set()
    for tree in TREES:
        for path in sorted((ROOT / tree).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
                packages.add(".".join(parts))
            sources[".".join(parts)] = path.read_text()
    return sources, packages


SOURCES, PACKAGES = read_tree()


def test_imports_follow_the_arrows():
    assert {module.split(".")[0] for module in SOURCES} == set(TREES)
    found = [
        line
        for module, source in SOURCES.items()
        for line in violations(source, module, module in PACKAGES)
    ]
    assert not found, "\n".join(["imports against the arrows:", *found])


@pytest.mark.parametrize("library", FLOORS)
def test_rooms_form_no_circle(library):
    assert circle_of_rooms(SOURCES, PACKAGES, library) is None


@pytest.mark.parametrize("library", FLOORS)
def test_every_module_belongs_to_a_known_room(library):
    rooms = {module.split(".")[1] for module in SOURCES if module.startswith(f"{library}.")}
    assert rooms - set(MAY_IMPORT[library]) == set(), "give the new room its place in FLOORS"


def test_configs_and_the_doors_of_packages_load_no_jax():
    doors = [module for module in PACKAGES if not module.startswith("tools")]
    configs = [module for module in SOURCES if module.startswith("configs")]
    assert failures_without_jax(sorted({*WITHOUT_JAX, *doors, *configs})) == {}


def test_every_imported_package_is_a_declared_dependency():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    optional = ("lmms", "trackers", "slurm", "parquet", "excel", "frames", "gs", "s3")
    optional = [line for name in optional for line in extras[name]]
    needed = project["dependencies"] + optional
    declared = {re.match(r"[\w-]+", requirement)[0] for requirement in needed}
    compared = {
        re.match(r"[\w-]+", requirement)[0]
        for requirement in extras["dev"] + extras["torch"] + extras["decoders"]
    }
    called = {"PIL": "pillow", "orbax": "orbax-checkpoint", "lmms_eval": "lmms-eval"}
    called |= {"tensorflow_datasets": "tensorflow-datasets", "yaml": "pyyaml"}
    called |= {"google": "google-cloud-storage", "botocore": "boto3"}
    called |= {"python_calamine": "python-calamine"}
    known = {*sys.stdlib_module_names, *TREES}
    undeclared = [
        f"{module}:{imported.line} imports {imported.target}"
        for module, source in SOURCES.items()
        for imported in imports_of(source, module, module in PACKAGES)
        if imported.tree not in known and called.get(imported.tree, imported.tree) not in declared
        # A benchmark may stand beside what only developers install.
        if not (module.startswith("tools.bench.") and imported.tree in compared)
    ]
    assert undeclared == []


def test_pins_and_ranges_name_the_same_packages():
    with (ROOT / "pyproject.toml").open("rb") as file:
        ranges = tomllib.load(file)["project"]["dependencies"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.match(r"[\w-]+==\d", pin) for pin in pins)
    names = [{re.match(r"[\w-]+", line)[0] for line in group} for group in (pins, ranges)]
    assert names[0] - {"jaxlib"} == names[1]
