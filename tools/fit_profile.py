"""What `vvlm fit --profile` prints and writes."""

from pathlib import Path

from vvlm_jax.progress import live

from .common import flag, write_csv


def write_profiles(folder: Path, law, names: str) -> None:
    """Print the intervals; write profile.csv and figures/profile.svg into the folder."""
    from fitting import profiles
    from fitting.figures.profile import draw_profiles
    from fitting.figures.style import drawn

    with flag(f"--profile {names}:"):
        asked = profiles.names_of(law, names)
    with live("profile") as say:
        found = profiles.profile(law, asked, on_progress=say)
    print(f"\n{profiles.text(found)}\n\n{folder / 'profile.csv'}")
    write_csv(folder / "profile.csv", [row for one in found for row in one.rows()])
    figure = folder / "figures" / "profile.svg"
    figure.parent.mkdir(exist_ok=True)
    figure.write_bytes(drawn(draw_profiles(found), title=law.metric).svg)
    print(figure)
