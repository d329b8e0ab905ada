"""What `vvlm fit` checks before the work: whether there are enough runs for the form."""

import sys

from fitting.config import FitConfig
from fitting.forms import FORMS, decisive_form, get_form, usable_forms
from fitting.runs import RunTable


def check_enough(table: RunTable, config: FitConfig) -> None:
    """Raise ValueError for fewer runs than parameters; names the forms that would do."""
    runs, with_n = len(table), table.n is not None

    def count(name: str) -> int:
        return len(get_form(name).parameters(len(table.factors), with_n))

    asked, free = decisive_form(config, len(table.factors), with_n)
    free -= len(config.fix or ())
    if runs >= free:
        return
    fits = [n for n in usable_forms(FORMS, with_n) if get_form(n).has_n >= with_n]
    smaller = [f"{n} ({count(n)})" for n in fits if count(n) < runs]
    remedy = f"or choose a --form of fewer: {', '.join(smaller)}" if smaller else "no form does"
    of = f" of {table.metrics[0]}" * bool(table.metrics[0])
    raise ValueError(
        f"{table.source}: {runs} run{'s' * (runs > 1)}{of} cannot determine the "
        f"{free} parameters of {asked!r}; add runs, {remedy}"
    )


def warn_if_few(what: str, runs: int, config: FitConfig, table: RunTable) -> None:
    """Print a warning where runs do not outnumber parameters."""
    _, count = decisive_form(config, len(table.factors), table.n is not None)
    count -= len(config.fix or ())
    if runs <= count:
        why = "nothing is left to check the law" if runs == count else "they are not determined"
        print(f"warning: {what}: {runs} runs for {count} parameters: {why}", file=sys.stderr)
