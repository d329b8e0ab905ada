"""Draw the profiles of parameters beside the range of the bag's members."""

import numpy as np

from fitting.figures.style import GREY, PALETTE, keep, panel_grid, plain, styled

COLUMNS = 4
TOP = 3.0  # thresholds shown


@styled
def draw_profiles(found):
    """Return a figure of `fitting.profiles.Profile`s, one panel each.

    The curve is the deviance with the parameter held, the dotted line its 90% threshold, the bar
    below the 5% to 95% range of the bag's members.
    """
    across = min(len(found), COLUMNS)
    down = -(-len(found) // across)
    figure, axes = panel_grid(down, across, width=2.4, height=2.2, sharey=False)
    for axis, one in zip(axes.ravel(), found, strict=False):
        shown = one.deviance <= TOP * one.threshold
        near = shown | np.r_[shown[1:], False] | np.r_[False, shown[:-1]]
        axis.plot(one.values[near], one.deviance[near], color=PALETTE[0], marker=".", ms=4)
        axis.axhline(one.threshold, color=GREY, linewidth=1, linestyle=":")
        axis.set_ylim(-0.4 * one.threshold, TOP * one.threshold)
        axis.hlines(-0.2 * one.threshold, *one.bag, color=PALETTE[1], linewidth=4)
        axis.plot(one.estimate, 0, "kx", ms=6)
        axis.set_title(plain(one.name))
        rows = one.rows()
        texts = [f"{one.name} = {r['value']:.4g}\ndeviance {r['deviance']:.3g}" for r in rows]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        keep(axis, one.values, one.deviance, texts, **columns)
    for axis in axes.ravel()[len(found) :]:
        axis.set_axis_off()
    figure.supylabel("deviance", fontsize=8, color=GREY)
    figure.supxlabel("dotted: the 90% threshold; bar: 5% to 95% of the members", fontsize=8)
    return figure
