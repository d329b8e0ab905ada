"""Forms of a user: listed in a Python file, and forms with exponents tied to each other.

A form of a file is known as `FILE.py:NAME#DIGEST`, so that two versions of one file are two forms.
A law keeps its terms as plain data beside the source text: loading a law runs no code of a user.
`NAME~a_T=a_V` is the form NAME in which both exponents are one parameter, called a_T.
"""

import hashlib
import importlib.util
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from fitting.config import FACTORS
from fitting.forms import OWN, Form, N, Term, factor_labels
from fitting.naming import in_form

_FILE = re.compile(r"(?P<path>.+\.py):(?P<name>\w+)")


@dataclass(frozen=True)
class OwnForm(Form):
    """A form of a user's file.

    Attributes:
      uses_n: whether the number of examples appears in it.
      source: text of the file.
    """

    uses_n: bool = False
    source: str = ""

    @property
    def has_n(self) -> bool:
        """Return whether the number of examples appears in the form."""
        return self.uses_n


def resolve(form: str, ties: tuple[str, ...] = (), factors: tuple[str, ...] = FACTORS) -> str:
    """Return the name that `FitConfig.form` takes for a form as a user writes it.

    Args:
      form: a name, or FILE.py:NAME of a `Form` or a function of factor labels that lists terms.
      ties: EXPONENT=EXPONENT each.
      factors: columns, after which the exponents may be named.

    Raises:
      ValueError: one line; the file does not load, holds no such name, or lists no terms.
    """
    entries = [entry.strip() for entry in form.split(",")]
    for i, entry in enumerate(entries):
        if found := _FILE.fullmatch(entry):
            entries[i] = load(found["path"], found["name"]).name
    form = ",".join(entries)
    for tie in ties:
        if not re.fullmatch(r"[^=~,@]+=[^=~,@]+", tie) or len(set(tie.split("="))) < 2:
            raise ValueError(f"--tie {tie}: write EXPONENT=EXPONENT, such as a_T=a_V")
    both = (tie.split("=") for tie in ties)
    return "~".join([form, *("=".join(in_form(n, factors) for n in names) for names in both)])


def load(path, name: str) -> Form:
    """Return the form that a file defines under a name, and register it. Raises as `resolve`."""
    spec, file = f"{path}:{name}", Path(path)
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{spec}: {getattr(e, 'strerror', None) or 'not UTF-8 text'}") from None
    digest = hashlib.sha256(source.encode()).hexdigest()
    module_name = f"own_form_{digest[:12]}"
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_file_location(module_name, file.resolve())
    )
    sys.modules[module_name] = module  # dataclasses in the file look their module up
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except Exception as e:  # a user's file may raise anything
        where = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == str(file)]
        line = getattr(e, "lineno", None) or (where[-1] if where else None)
        at = f", line {line}" if line else ""
        text = (str(e).splitlines() or [""])[0]
        raise ValueError(
            f"{spec}: the file does not load{at}: {type(e).__name__}: {text}"
        ) from None
    if not hasattr(module, name):
        there = [k for k, v in vars(module).items() if callable(v) or isinstance(v, Form)]
        own = ", ".join(k for k in there if k not in ("Term", "Form") and k[0] != "_")
        raise ValueError(f"{spec}: the file holds no {name!r}; it holds {own or 'no form'}")
    made = getattr(module, name)
    lister = made.list_terms if isinstance(made, Form) else made
    if not callable(lister):
        raise ValueError(f"{spec}: {name} is neither a Form nor a function that lists terms")
    return _register(f"{file.name}:{name}#{digest[:8]}", spec, lister, source)


def _register(name: str, spec: str, lister, source: str) -> Form:
    """Check the terms, for the first number of factors that the lister takes, and register it."""

    def list_terms(labels):
        return _checked(spec, lister, labels)

    first = None
    for count in (3, 2, 1, 4, 5):
        try:
            first = list_terms(factor_labels(count))
            break
        except ValueError as e:
            reason = e
    if first is None:
        raise reason
    uses_n = any(power[2] == N for term in first for power in term.powers)
    # With a single term of factors the best of them is the same at every n, as in `mult`.
    of_x = [term for term in first if any(power[2] != N for power in term.powers)]
    moves = len(of_x) > 1 and any(power[2] == N for term in of_x for power in term.powers)
    OWN[name] = OwnForm(name, list_terms, moves, uses_n, source)
    return OWN[name]


def _checked(spec: str, lister, labels) -> tuple[Term, ...]:
    """Return the terms for these labels; ValueError, one line, for what is no form."""
    try:
        terms = tuple(lister(tuple(labels)))
    except Exception as e:  # a user's function may raise anything
        text = (str(e).splitlines() or [""])[0]
        raise ValueError(
            f"{spec}: listing terms for {len(labels)} factors failed: {type(e).__name__}: {text}"
        ) from None
    if not terms or not all(isinstance(term, Term) for term in terms):
        raise ValueError(f"{spec}: must list one or more fitting.forms.Term")
    names = [term.coefficient for term in terms if isinstance(term.coefficient, str)]
    exponents = {power[0] for term in terms for power in term.powers}
    for one in names:
        if names.count(one) > 1 or one in exponents:
            raise ValueError(f"{spec}: names the parameter {one!r} twice")
    for term in terms:
        for power in term.powers:
            if len(power) != 3 or power[1] not in (1, -1) or not N <= power[2] < len(labels):
                raise ValueError(
                    f"{spec}: power {power!r} is not (exponent, +1 or -1, column of a factor or N)"
                )
    return terms


# --- ties ---


def check_ties(name: str, plain: Form, num_factors: int, with_n: bool) -> None:
    """Raise ValueError where a name ties what are no exponents of the form without ties."""
    there = plain.exponents(num_factors, with_n)
    for tie in name.split("~")[1:]:
        for exponent in tie.split("="):
            if exponent not in there:
                raise ValueError(
                    f"--tie {tie}: {exponent!r} is no exponent of {plain.name!r}; there are "
                    f"{', '.join(there)}"
                )


# --- in the file of a law ---


def to_json(form: Form, num_factors: int) -> dict | None:
    """Return the terms and the source of a user's form; None for the forms of this package."""
    if not isinstance(form, OwnForm):
        return None
    base = OWN[form.name.partition("~")[0]]
    terms = base.list_terms(factor_labels(num_factors))
    return {
        "name": base.name,
        "source": base.source,
        "sha256": hashlib.sha256(base.source.encode()).hexdigest(),
        "frontier_moves": base.frontier_moves,
        "terms": [[t.coefficient, [list(power) for power in t.powers]] for t in terms],
    }


def from_json(fields: dict, num_factors: int) -> None:
    """Register the form that `to_json` turned into JSON, for this number of factors."""
    if fields["name"] in OWN:
        return
    terms = tuple(
        Term(c if isinstance(c, str) else tuple(c), tuple(tuple(power) for power in powers))
        for c, powers in fields["terms"]
    )

    def list_terms(labels):
        if len(labels) != num_factors:
            raise ValueError(f"{fields['name']} was kept for {num_factors} factors")
        return terms

    uses_n = any(power[2] == N for term in terms for power in term.powers)
    OWN[fields["name"]] = OwnForm(
        fields["name"], list_terms, fields["frontier_moves"], uses_n, fields["source"]
    )
