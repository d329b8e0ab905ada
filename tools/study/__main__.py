"""Run the study: `python -m tools.study`."""

from . import cli

if __name__ == "__main__":
    cli()
