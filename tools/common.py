"""Shared by all commands: load a config file, end with one line, print safely."""

import contextlib
import csv
import dataclasses
import importlib
import importlib.util
import math
import os
import re
import select
import sys
import traceback
from pathlib import Path
from types import ModuleType

from vvlm_jax import config
from vvlm_jax.config import ConfigError, Stopped
from vvlm_jax.config_check import nearest
from vvlm_jax.override import from_json, to_json

USER_ERRORS = (ValueError, OSError, Stopped)
"""Errors that the user can fix; the rest are bugs."""

CONFIGS = "configs" if __package__ == "tools" else f"{__package__}.configs"
"""Package of the shipped configs: beside `tools` in a checkout, inside `vvlm` when installed."""


def own_command(*words: str) -> list[str]:
    """Return the command line of one of these commands in another process: `vvlm WORDS …`."""
    package = "vvlm" if importlib.util.find_spec("vvlm") else "tools"  # a checkout, not installed
    return [sys.executable, "-m", package, *words]


def shipped(name: str) -> ModuleType:
    """Return a module of the shipped configs, such as `shipped("study")`."""
    return importlib.import_module(f"{CONFIGS}.{name}")


def shipped_names() -> list[str]:
    """Return what `--config` and `vvlm sweep` take in place of a path: finetune, sweeps/star, …"""
    root = _configs_folder()
    files = (p.relative_to(root) for p in sorted(root.rglob("*.py")) if p.stem != "__init__")
    return [file.with_suffix("").as_posix() for file in files]


def load_config(path: Path, kind: type, function: str = "config", flag: str = "--config "):
    """Return the value of `config()`, or of another function, in a Python file.

    Args:
      path: a `.py` file, or the name of a shipped config (`finetune`, `sweeps/star`).
      kind: dataclass that the function must return.
      flag: option that the path was given by, for errors.

    Raises ConfigError, one line naming the file, when it is not there, fails, or sets an option
    that does not exist or has the wrong type.
    """
    file = _config_file(path, flag)
    try:
        module = _import(file)
        value = getattr(module, function)() if hasattr(module, function) else None
    except Exception as e:  # a user's file may raise anything
        raise ConfigError(f"{flag}{path}{_line_of(e, file)}: {_reason(e, kind)}") from e
    # Compare names: `configs.study` and `vvlm.configs.study`, one file in a checkout, differ.
    if type(value).__name__ != kind.__name__:
        raise ConfigError(f"{flag}{path}: must define {function}() -> {kind.__name__}")
    try:
        return from_json(kind, to_json(value))  # Python does not check the types of fields
    except (ConfigError, TypeError) as e:
        raise ConfigError(f"{flag}{path}: {e}") from e


def _configs_folder() -> Path:
    return Path(importlib.util.find_spec(CONFIGS).submodule_search_locations[0]).resolve()


def _config_file(path: Path, flag: str) -> Path:
    if path.suffix == ".py" and path.is_file():
        return path.resolve()
    if path.suffix == "" and str(path) in shipped_names():
        return _configs_folder() / f"{path}.py"
    if path.suffix == "":
        hint = nearest(str(path), shipped_names())
        raise ConfigError(f"{flag}{path}: is neither a file PATH.py nor a shipped config; {hint}")
    there = ", ".join(sorted(str(p) for p in path.parent.glob("*.py"))) or "no Python file"
    raise ConfigError(f"{flag}{path}: no such Python file; in that folder: {there}")


def _import(file: Path):
    if file.is_relative_to(root := _configs_folder()):
        return shipped(".".join(file.relative_to(root).with_suffix("").parts))
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _line_of(error: Exception, file: Path) -> str:
    """Return `, line 3`, where in the user's file the error arose; empty if elsewhere."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f", line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return f", line {lines[-1]}" if lines else ""


def _reason(error: Exception, kind: type) -> str:
    """Return an error's message; for an unknown option, with the nearest one that exists."""
    unknown = re.search(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    known = {**vars(config), kind.__name__: kind}
    if unknown and dataclasses.is_dataclass(cls := known.get(unknown[1])):
        options = [field.name for field in dataclasses.fields(cls)]
        return f"{unknown[2]}: no such option; {nearest(unknown[2], options)}"
    return f"{type(error).__name__}: {error}"


def die_in_one_line(command, *, continues: bool = True) -> None:
    """Run a command; user errors and Ctrl-C end it with one line, bugs with a traceback.

    With VVLM_TRACEBACK=1 in the environment, every error has a traceback.

    Args:
      continues: whether the same command, run again, continues after an interruption.
    """
    try:
        command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        what = (
            "run the same command again to continue"
            if continues
            else "files already written are kept"
        )
        print(f"\ninterrupted; {what}", file=sys.stderr)
        sys.exit(130)
    except Exception as e:
        if isinstance(e, BrokenPipeError) and _reader_has_ended():
            sys.exit(141)
        # A failed job of a sweep carries its error as the cause.
        is_user_error = any(isinstance(error, USER_ERRORS) for error in (e, e.__cause__))
        if os.environ.get("VVLM_TRACEBACK") or not is_user_error:
            raise
        of_file = isinstance(e, OSError) and e.filename and e.strerror
        print(
            "error:",
            f"{e.filename}: {e.strerror}" if of_file else f"{e}".split("\n")[0],
            file=sys.stderr,
        )
        sys.exit(2)


def _reader_has_ended() -> bool:
    """Return whether the program that reads standard output, such as `head`, has ended.

    If so, send the rest of the output to /dev/null, so that Python can flush it at exit.
    """
    out, poll = sys.__stdout__.fileno(), select.poll()
    poll.register(out, 0)
    ended = bool(poll.poll(0))
    if ended:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    return ended


@contextlib.contextmanager
def flag(name: str):
    """Put the flag's name in front of the ValueErrors that the block raises."""
    try:
        yield
    except ValueError as e:
        raise ValueError(f"{name} {e}") from None


def check_positive(flags, *names: str, zero: bool = False) -> None:
    """Raise ValueError, naming the flag, unless these fields are None or positive and finite."""
    for name in names:
        value = getattr(flags, name)
        if value is not None and not (0 < value < math.inf or (zero and value == 0)):
            must = "0 or more" if zero else "a positive number"
            raise ValueError(f"--{name.replace('_', '-')} must be {must}, got {value:g}")


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows of equal keys as a CSV with a header, and the folder it goes into."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def check_is_here(flag: str, path: Path | None) -> None:
    """Raise ConfigError for a URL of a bucket, which `Path` has turned into `gs:/BUCKET`."""
    from vvlm_jax.storage import bucket

    if bucket.is_url(path):
        url = re.sub(":/+", "://", str(path), count=1)
        raise ConfigError(f"{flag} {url}: must be on this machine, not in a bucket")
