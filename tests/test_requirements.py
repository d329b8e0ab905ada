"""requirements.txt, the tests' requirement files and uv.lock pin the same versions."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS_OF = {  # requirement file: the extra whose environment it describes
    "requirements.txt": "",
    "tests/requirements.txt": "dev",
    "tests/requirements-torch.txt": "torch",
    "tests/requirements-tpu.txt": "libtpu",
    "tests/requirements-lmms.txt": "lmms",
}
PYTHONS = ("3.11", "3.12")


def environment(python, extra):
    """Return markers' variables; uv names the extras of its conflicts `extra-8-vvlm-jax-NAME`."""
    name = f"extra-{len('vvlm-jax')}-vvlm-jax-{extra}" if extra else ""
    return {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "extra": name,
    }


def pinned(file, python, extra):
    """Return {name: version} of a requirement file."""
    pins = {}
    for line in (ROOT / file).read_text().splitlines():
        if text := line.split("#")[0].strip():
            requirement = Requirement(text)
            if not requirement.marker or requirement.marker.evaluate(environment(python, extra)):
                (pin,) = requirement.specifier
                assert pin.operator == "==", f"{file}: {line}: pin one version with =="
                pins[canonicalize_name(requirement.name)] = pin.version
    return pins


def locked(python, extra):
    """Return {name: version} that uv installs for a Python and one extra."""
    where, packages, found, seen = environment(python, extra), {}, {}, set()
    for package in LOCK["package"]:
        packages.setdefault(package["name"], []).append(package)
    todo = [({"name": "vvlm-jax"}, extra)]
    while todo:
        wanted, of_extra = todo.pop()
        version = wanted.get("version")
        (package,) = (p for p in packages[wanted["name"]] if version in (None, p["version"]))
        found.setdefault(package["name"], set()).add(package["version"])
        groups = [package.get("dependencies", [])]
        for name in {of_extra, *wanted.get("extra", [])} - {""}:
            groups.append(package.get("optional-dependencies", {}).get(name, []))
        for edge in (edge for group in groups for edge in group):
            if "marker" in edge and not Marker(edge["marker"]).evaluate(where):
                continue
            if (key := repr(edge)) not in seen:
                seen.add(key)
                todo.append((edge, ""))
    assert all(len(versions) == 1 for versions in found.values()), found
    return {name: version for name, (version,) in found.items()}


@pytest.mark.light
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("file", "extra"), EXTRAS_OF.items())
def test_a_requirement_file_pins_what_the_lock_holds(file, extra, python):
    lock = locked(python, "dev") | locked(python, extra)
    wrong = {
        name: f"{file} pins {version}, uv.lock holds {lock.get(name)}"
        for name, version in pinned(file, python, extra).items()
        if lock.get(name) != version
    }
    assert not wrong, f"uv lock --upgrade-package NAME==VERSION brings them together: {wrong}"


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_within_its_range(python):
    pins = pinned("requirements.txt", python, "")
    for text in PROJECT["dependencies"]:
        wanted = Requirement(text)
        assert pins[canonicalize_name(wanted.name)] in wanted.specifier, text


def test_every_pin_says_what_it_is_for():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if "==" in line.split("#")[0]]
    said = {line.split("==")[0] for line in pins if re.search(r"#\s*\w+", line)}
    assert {line.split("==")[0] for line in pins} == said


def test_the_lock_is_of_this_project_and_of_the_public_index_alone():
    (project,) = (package for package in LOCK["package"] if package["name"] == "vvlm-jax")
    assert project["version"] == PROJECT["version"]
    assert set(project["optional-dependencies"]) == set(PROJECT["optional-dependencies"])
    sources = {str(package["source"]) for package in LOCK["package"]}
    assert sources == {"{'registry': 'https://pypi.org/simple'}", "{'editable': '.'}"}
