import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vvlm_jax.data.frames import MODES, choose_frames, resize_square

# By hand from the rule: (native frames, fps, frames wanted, mode) → indices.
BY_HAND = [
    (1, 30.0, 1, "uniform", [0]),
    (1, 30.0, 4, "uniform", [0, 0, 0, 0]),
    (1, 30.0, 4, "force", [0, 0, 0, 0]),
    (5, 30.0, 3, "uniform", [0, 0, 0]),  # under a second: one grid frame
    (5, 30.0, 3, "force", [0, 2, 4]),
    (90, 30.0, 3, "uniform", [0, 30, 60]),  # the grid fits exactly
    (90, 30.0, 4, "uniform", [0, 0, 30, 60]),
    (90, 30.0, 8, "uniform", [0, 0, 0, 30, 30, 30, 60, 60]),
    (91, 30.0, 3, "uniform", [0, 45, 90]),  # one grid frame too many: spread over all
    (20, 2.0, 4, "uniform", [0, 6, 12, 19]),
    (20, 2.0, 20, "uniform", [n - n % 2 for n in range(20)]),
    (20, 2.0, 20, "force", list(range(20))),
    (100, 29.97, 4, "uniform", [0, 30, 60, 90]),  # 29.97 rounds to 30
    (10, 2.5, 5, "uniform", [0, 2, 4, 6, 8]),  # halves round to even, as Python's round does
    (10, 3.5, 3, "uniform", [0, 4, 8]),
    (4, 0.2, 4, "uniform", [0, 1, 2, 3]),  # the step is never below 1
    (4, 0.2, 2, "uniform", [0, 3]),
    (10, 1.0, 1, "uniform", [0]),
    (10, 1.0, 4, "force", [0, 3, 6, 9]),
    (11, 1.0, 4, "force", [0, 3, 6, 10]),  # 3.33 and 6.67 are cut, not rounded
    (108_000, 30.0, 5, "uniform", [0, 26_999, 53_999, 80_999, 107_999]),  # an hour
    (108_000, 30.0, 3600, "uniform", list(range(0, 108_000, 30))),
]


@pytest.mark.parametrize(("num_native", "fps", "num_frames", "mode", "expected"), BY_HAND)
def test_indices_worked_out_by_hand(num_native, fps, num_frames, mode, expected):
    chosen = choose_frames(num_native, fps, num_frames, mode)
    assert chosen.dtype == np.int64
    assert chosen.tolist() == expected


def plain_rule(num_native, fps, num_frames, mode):
    """Return the published rule in lists and loops, repeats dealt out frame by frame."""
    grid = list(range(0, num_native, round(fps) or 1))
    if mode == "uniform" and len(grid) <= num_frames:
        copies = [0] * len(grid)
        for place in range(num_frames):
            copies[math.floor(place * len(grid) / num_frames)] += 1
        return [index for index, times in zip(grid, copies, strict=True) for _ in range(times)]
    if num_frames == 1:
        return [0]
    gap = (num_native - 1) / (num_frames - 1)
    return [int(place * gap) for place in range(num_frames - 1)] + [num_native - 1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fps", [0.5, 1, 8, 23.976, 29.97, 59.94])
def test_equals_the_plain_rule_from_one_frame_to_an_hour(fps, mode):
    for num_native in (1, 2, 7, 31, 32, 33, 240, 959, 960, 961, 5_400, round(3600 * fps)):
        for num_frames in (1, 2, 3, 8, 32, 64, 128):
            chosen = choose_frames(num_native, fps, num_frames, mode).tolist()
            assert chosen == plain_rule(num_native, fps, num_frames, mode), (num_native, num_frames)


counts = st.integers(1, 200_000)
rates = st.floats(0.01, 240)


@given(counts, rates, st.integers(1, 300), st.sampled_from(MODES))
def test_length_order_and_range(num_native, fps, num_frames, mode):
    chosen = choose_frames(num_native, fps, num_frames, mode)
    assert len(chosen) == num_frames
    assert (np.diff(chosen) >= 0).all()
    assert chosen[0] == 0
    assert chosen[-1] < num_native


@given(counts, rates, st.integers(1, 300))
def test_short_videos_repeat_every_grid_frame_evenly(num_native, fps, num_frames):
    grid = range(0, num_native, max(1, round(fps)))
    if len(grid) <= num_frames:
        frames, copies = np.unique(choose_frames(num_native, fps, num_frames), return_counts=True)
        assert frames.tolist() == list(grid)
        assert copies.max() - copies.min() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 30.0, 8), "num_native=0: must be 1 or more"),
        ((10, 30.0, 0), "num_frames=0: must be 1 or more"),
        ((10, 0.0, 8), "fps=0.0: must be a positive number"),
        ((10, math.nan, 8), "fps=nan: must be a positive number"),
        ((10, 30.0, 8, "random"), "mode='random': must be one of uniform, force"),
    ],
)
def test_says_which_field_is_wrong(arguments, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole message is compared
        choose_frames(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(("height", "width"), [(35, 51), (48, 64), (28, 90), (7, 5)])
def test_resize_is_pil_bicubic_aspect_not_kept(height, width):
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    expected = Image.fromarray(frame).resize((28, 28), Image.BICUBIC)
    np.testing.assert_array_equal(resize_square(frame, 28), np.asarray(expected))


def test_resize_leaves_the_right_size_alone():
    frame = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    assert resize_square(frame, 28) is frame
