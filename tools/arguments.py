"""Read a command line: options by tyro, mistakes as one line in place of tyro's boxes."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import tyro
from tyro import _errors  # pyproject.toml names the versions of tyro that have it

from vvlm_jax.config import ConfigError
from vvlm_jax.config_check import nearest

_ROW = re.compile(r"^[│ ]*(--?\w.*?)(?:  |$)", re.MULTILINE)
"""Names of an option, at the start of its row of `--help`."""


def read_options(kind, description: str | None, *, registry=None):
    """Return the options of this process's command line, an instance of `kind`.

    Args:
      kind: dataclass of options, or {subcommand: dataclass}.
      description: text above the options of `--help`.
      registry: tyro's, for types that it cannot read itself.

    Raises ConfigError, one line, for unknown or missing options and values. `--help` exits.
    """
    words = sys.argv[1:]
    name = Path(sys.argv[0]).stem if sys.argv[0].endswith(".py") else sys.argv[0]
    if isinstance(kind, Mapping):
        parse = lambda words: tyro.extras.subcommand_cli_from_dict(  # noqa: E731
            kind, description=description, args=words, registry=registry
        )
        if words[:1] not in (["-h"], ["--help"]):
            _check_subcommand(name, words, list(kind))
            name, scope = f"{name} {words[0]}", words[:1]
    else:
        scope = []
        parse = lambda words: tyro.cli(  # noqa: E731
            kind, description=description, args=words, registry=registry
        )

    def explain(event: _errors.ParseErrorEvent) -> None:
        _check_options(words, _options(parse, scope))
        if message := _message(event, name):
            raise ConfigError(f"{message}; {name} --help lists the options")

    with _errors.on_parse_error(explain):
        return parse(words)


def _check_subcommand(name: str, words: list[str], known: list[str]) -> None:
    if not words:
        raise ConfigError(f"{name}: say what to do: {', '.join(known)}")
    if words[0] not in known:
        hint = nearest(words[0], known)
        raise ConfigError(f"{name} {words[0]}: no such subcommand; {hint}")


def _options(parse: Callable, scope: list[str]) -> list[str]:
    """Return the names of all options, as `--help` lists them."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        parse([*scope, "--help"])
    return [
        name for row in _ROW.findall(text.getvalue()) for name in re.findall(r"--\w[\w.-]*", row)
    ]


def _check_options(words: list[str], known: list[str]) -> None:
    """Raise ConfigError for the first option that does not exist, with the nearest one."""
    for word in words:
        option = word.partition("=")[0].replace("_", "-")
        if re.match("--?[a-zA-Z]", option) and option not in (*known, "-h"):
            raise ConfigError(f"{option}: no such option; {nearest(option, known)}")


def _message(event: _errors.ParseErrorEvent, name: str) -> str:
    """Return what is wrong with a command line; empty where tyro's own text must do."""
    match event:
        case _errors.MissingArgs():
            missing = [_name(found.arg) for found in event.missing_arguments]
            return f"{name}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        case _errors.BadValue():
            return f"{_name(event.argument)}: has no value"
        case _errors.InvalidChoice():
            allowed = ", ".join(sorted({*event.choices} - {"None"}))
            return f"{_name(event.argument)} {event.value}: must be one of {allowed}"
        case _errors.UnrecognizedArgs():
            return f"{event.tokens[0]}: one word too many"
        case _errors.InstantiationFailure() if event.argument is not None:
            return f"{_name(event.argument)} {_plain(event.message)}"
    return ""


_UNREADABLE = re.compile(
    r"could not convert string to (float): '(.*)'"
    r"|invalid literal for (int)\(\) .*: '(.*)'"
    r"|no type matching .*(FLOAT|INT).* could be instantiated from \['(.*?)'.*",
    re.DOTALL,
)
"""Messages of float(), int() and tyro for text that is no number."""


def _plain(message: str) -> str:
    """Return `VALUE: must be a number` for a value that is none; other messages unchanged."""
    found = _UNREADABLE.fullmatch(message)
    if not found:
        return message
    kind, value = (text for text in found.groups() if text is not None)
    return f"{value}: must be a {'' if kind.lower() == 'float' else 'whole '}number"


def _name(argument) -> str:
    """Return an option as users write it: `--out`, or the placeholder of a positional argument."""
    if argument.is_positional():
        return str(argument.lowered.metavar)
    return argument.lowered.name_or_flags[-1]
