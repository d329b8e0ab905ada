"""A form for `vvlm fit --form docs/own_form.py:falls`: factors and n lower the error apart."""

from fitting.forms import N, Term


def falls(labels):
    """List the terms sum_k alpha_k x_k^-a_k + xi n^-d + floor, for K factor labels."""
    of_factors = (Term(f"alpha_{s}", ((f"a_{s}", -1, k),)) for k, s in enumerate(labels))
    return (*of_factors, Term("xi", (("d", -1, N),)), Term("floor"))
