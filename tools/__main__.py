"""The command `vvlm`: the first word names a command, the rest are its options."""

import importlib
import sys

COMMANDS = {
    "fit": "fit a scaling law to a table of runs",
    "plan": "choose what to deploy for a budget, from a fitted law",
    "report": "write one page with all figures and tables of a table of runs",
    "study": "run the whole system on a small synthetic world",
    "sweep": "plan, launch, watch and collect many runs",
    "train": "train one model, one stage",
    "evaluate": "score a model on question files or on the paper's benchmarks",
    "generate": "ask a model about videos",
    "prepare": "turn published data sets into one training set",
    "convert": "bring weights in, take them out",
    "compile": "compile a training step for chips that are not here",
}
"""What each command does; its module has the same name."""


def main() -> None:
    """Run the command that the first argument names; without one, list the commands."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name not in COMMANDS:
        from vvlm_jax.config_check import nearest

        print(f"error: {name}: no such command; {nearest(name, list(COMMANDS))}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"vvlm {name}", *rest]
    importlib.import_module(f".{name}", __package__).cli()


def usage() -> str:
    """Return the list of commands."""
    lines = (f"  {name:<10}{what}" for name, what in COMMANDS.items())
    return "\n".join(
        ["usage: vvlm COMMAND [options]      (vvlm COMMAND --help lists them)", "", *lines]
    )


if __name__ == "__main__":
    main()
