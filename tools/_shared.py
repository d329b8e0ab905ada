"""What every command does the same way."""

import importlib
import importlib.util
import sys
from pathlib import Path

from vvlm_jax.config import ConfigError, Stopped

_PEOPLES = (ValueError, FileNotFoundError, Stopped)
"""Errors that a person can mend; the rest are bugs."""


def load_config(path: Path, kind: type):
    """The value of `config()` in a Python file. ConfigError when the file or the function is not
    there.
    """
    if not path.is_file():
        there = ", ".join(sorted(str(p) for p in path.parent.glob("*.py"))) or "no Python file"
        raise ConfigError(f"--config {path}: no such file; in that folder: {there}")
    root, file = Path(__file__).parents[1], path.resolve()
    if file.is_relative_to(root):  # so that `configs.study` is one module, however it is named
        module = importlib.import_module(".".join(file.relative_to(root).with_suffix("").parts))
    else:
        spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    value = module.config() if hasattr(module, "config") else None
    if not isinstance(value, kind):
        raise ConfigError(f"--config {path}: must define config() -> {kind.__name__}")
    return value


def die_in_one_line(command) -> None:
    """Runs a command; people's mistakes and Ctrl-C end it with one line, bugs with a traceback."""
    try:
        command()
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except Exception as e:
        # A failed job of a sweep carries its error as the cause.
        if not any(isinstance(error, _PEOPLES) for error in (e, e.__cause__)):
            raise
        print(f"error: {e}".splitlines()[0], file=sys.stderr)
        sys.exit(2)
