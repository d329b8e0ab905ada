"""Record what a test of a law's fit found; the record travels with the law and every answer."""

from typing import NamedTuple

HOLDS, DOUBTFUL, NO_LAW = "holds", "doubtful", "no law"
VERDICTS = (HOLDS, DOUBTFUL, NO_LAW)


class Test(NamedTuple):
    """One statistic.

    Attributes:
      name: what is tested.
      statistic: its value; an F, or as the name says.
      p: chance of a value as large if the form is right, before the tests are combined.
    """

    name: str
    statistic: float
    p: float


class Verdict(NamedTuple):
    """Whether the runs contradict the law.

    Attributes:
      verdict: 'holds', 'doubtful' or 'no law'.
      reasons: sentences; for a law that holds, notes.
      help: a sentence, what would help; '' where nothing needs to.
      tests: the statistics behind it.
      misfit: root mean square error that the form adds on the runs, in the table's unit, beyond
        what noise would seem to add; an estimate, 0 where nothing shows.
    """

    verdict: str
    reasons: tuple[str, ...] = ()
    help: str = ""
    tests: tuple[Test, ...] = ()
    misfit: float = 0.0

    @property
    def text(self) -> str:
        """Return the verdict, its reasons and what would help, in one line."""
        parts = " ".join([*self.reasons, *([self.help] if self.help else [])])
        return f"{self.verdict}{': ' * bool(parts)}{parts}"

    def answer(self) -> dict:
        """Return what stands at the top of an answer in JSON."""
        return {"verdict": self.verdict, "reasons": list(self.reasons), "help": self.help}

    def to_json(self) -> dict:
        """Return the record as JSON-ready values."""
        tests = [test._asdict() for test in self.tests]
        return {**self.answer(), "tests": tests, "misfit": self.misfit}

    @classmethod
    def from_json(cls, fields: dict | None) -> "Verdict | None":
        """Return what `to_json` gave; None for a law that was not tested."""
        if fields is None:
            return None
        tests = tuple(Test(**test) for test in fields["tests"])
        reasons, misfit = tuple(fields["reasons"]), fields.get("misfit", 0.0)
        return cls(fields["verdict"], reasons, fields["help"], tests, misfit)
