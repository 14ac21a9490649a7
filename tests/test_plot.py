"""What pictures show: places, heights, limits and names in the artists, and that nothing hides anything."""

import math
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import torch
from matplotlib.figure import Figure
from torch.utils.data import Subset, TensorDataset

from dattri import (
    Predictions,
    Targets,
    detection_curve,
    lds,
    lds_interval,
    loo_corr,
    mislabel_detection_auc,
    plot,
)
from dattri.benchmark.leaderboard import Leaderboard, LeaderboardRow
from dattri.metric import Ceiling, ConfidenceInterval
from dattri.metric.removal import Brittleness, RemovalRow, RemovalTest
from dattri.metric.report import judge

DRAW = torch.Generator().manual_seed(0)
SCORE = torch.randn(40, 12, generator=DRAW)
SUBSETS = torch.stack([torch.randperm(40, generator=DRAW)[:20] for _ in range(15)])
RUNS = -SCORE[SUBSETS].sum(1)[:, None] + torch.randn(15, 3, 12, generator=DRAW)
TARGETS = Targets(RUNS, SUBSETS)
TRUTH = TARGETS.ground_truth()
WRONG = (torch.arange(40) % 5 == 0).long()
SUSPICION = WRONG + torch.randn(40, generator=DRAW)
LDS = {"mine": lds(SCORE, TRUTH), "random": lds(torch.randn(40, 12, generator=DRAW), TRUTH)}
INTERVALS = {"mine": ConfidenceInterval(0.7, 0.72, 0.8), "$odd _name": (0.1, -0.1, 0.2), "failed": (math.nan,) * 3}


ROWS = (
    LeaderboardRow("best", "lds", 0.8, 0.7, 0.9, 0.95, is_best=True),
    LeaderboardRow("worst", "lds", 0.1, 0.0, 0.2, 0.95),
    LeaderboardRow("raised", "lds", error="ValueError"),
    LeaderboardRow("best", "mislabel", 0.9, 0.8, 0.95),
)
BOARD = Leaderboard(ROWS, "lr on digits")
REMOVED = [
    RemovalRow(method, "helpful", fraction, round(40 * fraction), effect, effect - 0.1, effect + 0.2, 10 * effect,
               10 * effect - 1, 10 * effect + 2, 0.5)
    for method, effect in (("a", 0.5), ("b", 0.1)) for fraction in (0.05, 0.2)
]  # fmt: skip
REMOVAL = RemovalTest(REMOVED, {}, torch.zeros(2, 3, 1), torch.zeros(1), [0])
FLIPS = Brittleness({"a": torch.tensor([2, 4, math.inf, math.nan]), "random order": torch.tensor([math.inf])}, 8, [0])
IMAGES = TensorDataset(torch.rand(40, 3, 4, 4, generator=DRAW), torch.arange(40) % 3)
TESTS = Subset(IMAGES, range(12))
CURVES = {"a": detection_curve(SUSPICION, WRONG), "b": detection_curve(torch.arange(40.0), WRONG)}
DETECTIONS = {"a": mislabel_detection_auc(SUSPICION, WRONG), "b": mislabel_detection_auc(torch.arange(40.0), WRONG)}
PICTURES = {
    "methods": lambda ax=None: plot.methods(INTERVALS, ax, ceiling=0.9),
    "leaderboard": lambda ax=None: plot.methods(BOARD, ax),
    "distribution": lambda ax=None: plot.distribution(LDS, ax, ceiling=torch.rand(12, generator=DRAW)),
    "predicted_actual": lambda ax=None: plot.predicted_actual(SCORE, TARGETS, ax, method="mine"),
    "detection": lambda ax=None: plot.detection(CURVES, ax),
    "roc": lambda ax=None: plot.roc(DETECTIONS, ax),
    "removal": lambda ax=None: plot.removal(REMOVAL, ax),
    "removal_of_targets": lambda ax=None: plot.removal(REMOVAL, ax, units="target"),
    "flips": lambda ax=None: plot.flips(FLIPS, ax),
    "images": lambda ax=None: plot.top_samples(SCORE, IMAGES, TESTS, 3, ax, k=3),
    "texts": lambda ax=None: plot.top_samples(SCORE, ["$a_ word " * 30] * 40, ["a test"] * 12, 3, ax, k=3),
}


def names(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def all_texts(ax):
    """Texts that are seen, of the axes and those in them."""
    own = [ax.title, ax._left_title, *ax.texts]
    if ax.axison:
        own += [*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label]
    own += ax.get_legend().get_texts() if ax.get_legend() else []
    return [text for text in own if text.get_text()] + [text for child in ax.child_axes for text in all_texts(child)]


def check_nothing_is_hidden(ax):
    """No text lies on another one, or on a line."""
    ax.figure.draw_without_rendering()
    texts = all_texts(ax)
    boxes = [text.get_window_extent().padded(-1) for text in texts]
    for number, box in enumerate(boxes):
        for other, text in zip(boxes[:number], texts, strict=False):
            assert not box.overlaps(other), (texts[number].get_text(), text.get_text())
    if ax.get_legend():
        box = ax.get_legend().get_window_extent()
        for line in ax.lines:
            if len(line.get_xdata()) and line.get_transform() == ax.transData:
                assert not line.get_path().interpolated(20).transformed(ax.transData).intersects_bbox(box, filled=False)


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_is_hidden(name):
    """On axes of its own, and beside others on a figure without a layout."""
    before = dict(mpl.rcParams)
    ax = PICTURES[name]()
    check_nothing_is_hidden(ax)
    plt.close(ax.figure)
    check_nothing_is_hidden(PICTURES[name](Figure(figsize=(11, 4.5)).subplots(1, 2)[0]))
    assert dict(mpl.rcParams) == before


def test_no_line_shows_through_a_legend():
    """Methods on both sides of 0: the line of random scores would cross the text."""
    frame = plot.methods({"a": (0.5, 0.4, 0.6), "b": (-0.9, -0.95, -0.8)}, Figure().subplots()).get_legend().get_frame()
    assert frame.get_visible() and frame.get_alpha() == 1 and mpl.colors.to_hex(frame.get_facecolor()) == "#ffffff"


def test_a_legend_of_many_methods_fits_the_axes_beside_each_other():
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    for ax, curve, draw in zip(figure.subplots(1, 2), (CURVES, DETECTIONS), (plot.detection, plot.roc), strict=True):
        draw({f"self-influence, {count} models": curve["a"] for count in range(4)}, ax)
    for ax in figure.axes:
        check_nothing_is_hidden(ax)
        assert ax.get_legend().get_window_extent().width < ax.get_window_extent().width
        assert ax.get_window_extent().width > 350


@pytest.mark.parametrize("name", PICTURES)
def test_axes_that_are_given_are_drawn_on_without_pyplot(name):
    before = plt.get_fignums()
    for ax in (Figure().subplots(), Figure().subfigures(1, 2)[0].subplots()):
        assert PICTURES[name](ax) is ax
    assert plt.get_fignums() == before


@pytest.mark.parametrize("name", [name for name in PICTURES if name not in ("images", "texts")])
def test_axes_say_what_they_are_and_lines_differ_without_colour(name):
    ax = PICTURES[name](Figure().subplots())
    assert ax.get_xlabel() and (ax.get_ylabel() or ax.get_yticklabels()[0].get_text())
    drawn = [line for line in ax.lines if ax.get_legend() and line in ax.get_legend_handles_labels()[0]]
    looks = [(line.get_linestyle(), line.get_marker(), line.get_markerfacecolor()) for line in drawn]
    assert len(set(looks)) == len(looks) or name in ("methods", "leaderboard"), "whose names are on the axis"


def ends_of(span):
    """Lower left and upper right corner of a span, which is a polygon before matplotlib 3.9 and a rectangle since."""
    return span.get_path().transformed(span.get_patch_transform()).get_extents().get_points()


def test_methods_stand_at_their_values():
    ax = plot.methods(INTERVALS, Figure().subplots(), ceiling=Ceiling(torch.ones(2), 0.9, 0.85, 0.95, 1.0))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["mine", "$odd _name", "failed\n(no value)"]
    assert ax.get_yticks().tolist() == [2, 1, 0]
    points = {line.get_label(): line.get_xydata().tolist() for line in ax.lines if line.get_marker() == "o"}
    assert points["mine"] == [[0.7, 2]] and points["$odd _name"] == [[0.1, 1]]
    ends = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "|"]
    assert ends[:2] == [[0.72, 0.8], [-0.1, 0.2]], "an interval may lie beside the mean"
    assert names(ax) == ["ceiling: 0.90 [0.85, 0.95]", "random scores: 0"]
    assert ends_of(*ax.patches)[:, 0] == pytest.approx([0.85, 0.95])
    assert ax.get_xlabel() == "mean LDS, 95% interval"
    labels = [plot.methods({"a": 0.5}, Figure().subplots(), metric=name, confidence=0.9).get_xlabel()
              for name in ("loo", "mislabel")]  # fmt: skip
    assert labels == ["mean LOO correlation, 90% interval", "AUC of finding wrong labels, 90% interval"]


@pytest.mark.parametrize(("ranked", "expected"), [(True, "bca"), (False, "abc")])
def test_methods_are_ranked_unless_their_order_means_something(ranked, expected):
    found = {"a": math.nan, "b": 0.5, "c": 0.1}
    ax = plot.methods(found, Figure().subplots(), ranked=ranked)
    assert "".join(text.get_text()[0] for text in ax.get_yticklabels()) == expected
    heights = {line.get_label(): line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"}
    assert [heights[name] for name in expected] == [2, 1, 0]


def test_methods_of_a_leaderboard():
    ax = plot.methods(BOARD, Figure().subplots())
    assert ax.get_title() == "lr on digits"
    assert [text.get_text() for text in ax.get_yticklabels()] == ["best", "worst", "raised\n(no value)"]
    faces = {line.get_label(): line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"}
    assert faces == {"best": "black", "worst": "white", "raised": "black"}
    best = "best, or not distinguishable from it"
    assert names(ax) == ["ceiling: 0.95", "random scores: 0", best, "worse than the best"]
    assert names(plot.methods(BOARD, Figure().subplots(), metric="mislabel")) == ["random scores: 0.5"]
    different = Leaderboard((ROWS[0], ROWS[1]._replace(ceiling=0.9)), "lr on digits")
    ax = plot.methods(different, Figure().subplots())
    assert [line.get_xydata().tolist() for line in ax.lines[:2]] == [
        [[0.9, -0.45], [0.9, 0.45]], [[0.95, 0.55], [0.95, 1.45]],
    ]  # fmt: skip
    assert names(ax)[0] == "ceiling of each method"
    assert names(plot.methods(different, Figure().subplots(), ceiling=0.5))[0] == "ceiling: 0.50"


def test_bars_count_test_samples():
    values = LDS["mine"].correlation.clone()
    values[0] = math.nan
    ax = plot.distribution({"mine": values, "other": LDS["random"]}, Figure().subplots(), ceiling=torch.ones(12))
    assert [text.get_text().split("\n")[0] for text in ax.get_yticklabels()] == ["mine", "other", "ceiling"]
    assert "1 undefined" in ax.get_yticklabels()[0].get_text()
    assert f"median {values.nanmedian():.2f}"[:-1] in ax.get_yticklabels()[0].get_text()
    rows = (values[1:], LDS["random"].correlation, torch.ones(12))
    for bars, place, found in zip(ax.patches, (2, 1, 0), rows, strict=True):
        heights, edges, baseline = bars.get_data()
        counts = np.histogram(found, edges)[0]
        assert counts.sum() == len(found) and baseline == place
        assert np.allclose(heights - place, 0.8 * counts / counts.max())
    medians = [line.get_xdata()[0] for line in ax.lines if line.get_linewidth() == 2]
    assert medians == pytest.approx([np.median(values[1:]), np.median(LDS["random"].correlation), 1.0])
    assert ax.get_xlabel() == "LDS of 12 test samples (line: median)"
    assert {bars.get_hatch() for bars in ax.patches} == {None, "////"}
    assert "LOO correlation" in plot.distribution(values, Figure().subplots(), metric="loo").get_xlabel()


def test_points_are_sums_against_what_retraining_showed():
    ax = plot.predicted_actual(SCORE, TARGETS, Figure().subplots(), test=5, method="mine")
    predicted, actual = SCORE[SUBSETS, 5].sum(1), -RUNS[:, :, 5].mean(1)
    points = ax.containers[0].lines[0].get_xydata()
    assert np.allclose(points, torch.stack([predicted, actual], 1), atol=1e-5)
    bars = np.array([np.diff(segment[:, 1])[0] for segment in ax.collections[0].get_segments()])
    assert np.allclose(bars / 2, RUNS[:, :, 5].std(1), atol=1e-5)
    rank = scipy.stats.spearmanr(predicted, actual).statistic
    assert ax.get_title() == f"mine, test sample 5\nrank correlation {rank:.2f}"
    assert "sum of the scores" in ax.get_xlabel() and "runs" in ax.get_ylabel()
    title = plot.predicted_actual(SCORE, TRUTH, Figure().subplots()).get_title()
    assert f"test sample {typical_of_the_varied()} (a typical one)" in title


def typical_of_the_varied():
    """The test sample whose LDS is next to the median, among the six of twelve whose targets vary most."""
    each, varied = LDS["mine"].correlation, TRUTH.values.double().std(0).argsort()[6:]
    return min(varied.tolist(), key=lambda place: abs(each[place] - each.sort().values[5]))


def test_a_typical_sample_is_not_one_that_every_model_gets_right():
    """Losses of an easy sample differ by rounding alone, and its correlation may still be the median."""
    scale = torch.where(torch.arange(12) % 2 == 0, 1e-7, 1.0)
    expected = [place for place in range(12) if place % 2]
    truth = (TRUTH.values * scale, SUBSETS)
    assert plot.typical(lds(SCORE, truth).correlation, truth[0]) in expected
    each = torch.tensor([0.1, 0.2, 0.3, 0.4, math.nan])
    spread = torch.tensor([[0.0, 0, 0, 0, 0], [9, 0, 0, 8, 9]])
    assert plot.typical(each, spread) == 0, "next to the median 0.2 are 0.1 and 0.4, of those that vary"
    with pytest.raises(ValueError, match="none is typical"):
        plot.typical(torch.full((2,), math.nan), torch.zeros(3, 2))


@pytest.mark.parametrize("form", ["tensor", "mask", "array", "predictions"])
def test_points_do_not_depend_on_the_form(form):
    mask = torch.zeros(15, 40, dtype=torch.bool).scatter_(1, SUBSETS, True)
    score, truth = {
        "tensor": (SCORE, TRUTH), "mask": (SCORE, (TRUTH.values, mask)),
        "array": (SCORE.numpy(), (TRUTH.values.numpy(), SUBSETS.numpy())),
        "predictions": (Predictions(SCORE[SUBSETS].sum(1)), TRUTH),
    }[form]  # fmt: skip
    ax = plot.predicted_actual(score, truth, Figure().subplots(), test=0)
    points = ax.containers[0].lines[0].get_xydata()
    assert np.allclose(points, torch.stack([SCORE[SUBSETS, 0].sum(1), TRUTH.values[:, 0]], 1), atol=1e-5)
    assert not ax.collections, "one run has no spread"


def test_points_of_removed_samples():
    removed = torch.tensor([3, 1, 2, 8])
    truth = (SCORE[removed] + 1, removed)
    ax = plot.predicted_actual(SCORE, truth, Figure().subplots(), test=1)
    points = torch.stack([SCORE[removed, 1], SCORE[removed, 1] + 1], 1)
    assert np.allclose(ax.containers[0].lines[0].get_xydata(), points)
    assert ax.get_title() == f"test sample 1\ncorrelation {loo_corr(SCORE, truth).correlation[1]:.2f}"
    assert ax.get_ylabel() == "loss after retraining without it"


def test_curves_lie_between_ideal_and_random_order():
    ax = plot.detection(CURVES, Figure().subplots())
    ideal, a, b, random = (line.get_xydata() for line in ax.lines)
    assert ideal.tolist() == [[0, 0], [pytest.approx(0.2), 1], [1, 1]] and random.tolist() == [[0, 0], [1, 1]]
    assert np.allclose(a, torch.stack([CURVES["a"].inspected, CURVES["a"].found], 1))
    assert np.allclose(b, torch.stack([CURVES["b"].inspected, CURVES["b"].found], 1))
    assert names(ax)[:2] == ["ideal: area 0.900", f"a: area {CURVES['a'].auc:.3f}"]
    ax = plot.roc(DETECTIONS, Figure().subplots())
    assert ax.lines[0].get_xydata().tolist() == [[0, 0], [0, 1], [1, 1]]
    assert np.allclose(ax.lines[1].get_xydata(), torch.stack([*DETECTIONS["a"].curve[:2]], 1))
    assert names(ax)[1] == f"a: AUC {DETECTIONS['a'].auc:.3f}" and names(ax)[-1] == "random order: AUC 0.500"
    assert max(ax.get_yticks()) == 1 < ax.get_ylim()[1]


@pytest.mark.parametrize("most", [1.0, 0.3])
def test_detection_ends_where_nobody_inspects_any_more(most):
    ax = plot.detection(CURVES, Figure().subplots(), most=most)
    assert ax.get_xlim() == pytest.approx((-0.02 * most, 1.02 * most))
    assert names(ax)[1] == f"a: area {CURVES['a'].auc:.3f}", "of the whole curve"
    check_nothing_is_hidden(ax)
    for wrong in (0, 1.5, True, "all"):
        with pytest.raises(ValueError, match="most: expected a share"):
            plot.detection(CURVES, Figure().subplots(), most=wrong)


def test_a_legend_lies_below_the_diagonal_where_it_hides_nothing():
    ax = plot.roc(DETECTIONS)
    assert ax.get_ylim() == pytest.approx((-0.02, 1.02)), "all of the axes is for the curves"
    plt.close(ax.figure)
    falling = {"a": mislabel_detection_auc(-WRONG + torch.arange(40) / 100, WRONG)}
    ax = plot.roc(falling)
    assert ax.get_ylim()[1] > 1.2, "a curve runs there, so the legend lies above"
    check_nothing_is_hidden(ax)
    plt.close(ax.figure)


@pytest.mark.parametrize("units, factor, band", [("spreads", 10, 1), ("target", 1, 0.1)])
def test_removals(units, factor, band):
    ax = plot.removal(REMOVAL, Figure().subplots(), units=units)
    for container, effect, shift in zip(ax.containers, (0.5, 0.1), (0.985, 1.015), strict=True):
        line, _, (bars,) = container.lines
        assert np.allclose(line.get_xydata(), [[5 * shift, factor * effect], [20 * shift, factor * effect]])
        assert np.allclose([segment[:, 1] - factor * effect for segment in bars.get_segments()],
                           [[-0.1 * factor, 0.2 * factor]] * 2)  # fmt: skip
    assert names(ax) == ["random removals: mean and spread", "a", "b"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["5", "20"] and "%" in ax.get_xlabel()
    band_of = ends_of(ax.patches[0]) if units == "spreads" else ax.collections[0].get_paths()[0].vertices
    heights = band_of[:, 1]
    assert [min(heights), max(heights)] == pytest.approx([-band, band])


def test_a_removal_in_both_directions_has_one_colour_per_method():
    both = [row._replace(direction=direction) for direction in ("helpful", "harmful") for row in REMOVED]
    ax = plot.removal(RemovalTest(both, {}, torch.zeros(2, 3, 1), torch.zeros(1), [0]), Figure().subplots())
    looks = [(container.lines[0].get_color(), container.lines[0].get_marker()) for container in ax.containers]
    assert looks[:2] == looks[2:] and looks[0] != looks[1]
    faces = [container.lines[0].get_markerfacecolor() for container in ax.containers]
    assert faces[2:] == ["white", "white"] and "white" not in faces[:2]
    assert names(ax)[1:] == ["a, helpful", "b, helpful", "a, harmful", "b, harmful"]
    check_nothing_is_hidden(ax)


def test_flips():
    ax = plot.flips(FLIPS, Figure().subplots())
    third = 100 / 3
    assert ax.lines[0].get_xydata().tolist() == [[1, 0], [2, third], [4, 2 * third], [8, 2 * third]]
    assert ax.lines[1].get_xydata().tolist() == [[1, 0], [8, 0]]
    assert names(ax) == ["a", "random order"]


def test_top_samples_are_those_with_the_extreme_scores():
    ax = plot.top_samples(SCORE, IMAGES, TESTS, 3, Figure().subplots(), k=4, method="mine", class_names="abc")
    order = SCORE[:, 3].argsort(descending=True).tolist()
    expected = [3, *order[:4], *order[::-1][:4]]
    assert len(ax.child_axes) == 9 and ax.get_title() == "mine"
    for child, place in zip(ax.child_axes, expected, strict=True):
        assert np.allclose(child.images[0].get_array(), IMAGES[place][0].moveaxis(0, -1))
    captions = [child.get_title() for child in ax.child_axes]
    assert captions[0] == "test sample 3\na"
    assert captions[1] == f"{order[0]}: {'abc'[order[0] % 3]}\nscore {SCORE[order[0], 3]:.3g}"


def test_own_scores_need_no_test_sample():
    own = SCORE[:, 3]
    order = own.argsort(descending=True).tolist()
    ax = plot.top_samples(own, IMAGES, ax=Figure().subplots(), k=4)
    captions = [child.get_title().split(":")[0] for child in ax.child_axes]
    assert captions == [str(place) for place in (*order[:4], *order[::-1][:4])]
    assert [text.get_text() for text in ax.texts] == ["largest scores", "smallest scores"]
    ax = plot.top_samples(own, ["a text"] * 40, ax=Figure().subplots(), k=2)
    assert len(ax.child_axes) == 4
    check_nothing_is_hidden(ax)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SCORE, IMAGES), "test, sample: expected both with a matrix"),
        ((SCORE[:, 0], IMAGES, TESTS, 0), r"expected a matrix \(num_train, num_test\)"),
        ((SCORE, IMAGES, TESTS), "sample=None"),
        ((SCORE[:9, 0], IMAGES), r"score, train: expected shape \(num_train,\)"),
    ],
)
def test_own_scores_and_a_matrix_are_told_apart(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot.top_samples(*arguments, ax=Figure().subplots())


@pytest.mark.parametrize("max_lines", [1, 6, 30])
def test_new_axes_are_as_high_as_their_texts_need(max_lines):
    """A text of about twelve lines in a column is shown as far as max_lines allows."""
    long = " ".join(["seventeen letters"] * 38)
    ax = plot.top_samples(SCORE[:, :1], [long] * 40, ["a test"], 0, k=2, max_lines=max_lines)
    ax.figure.draw_without_rendering()
    shown = [child.texts[0].get_text() for child in ax.child_axes[1:]]
    (length,) = {len(text.splitlines()) for text in shown}
    assert length == max_lines or 10 < length < max_lines
    assert all(text.endswith(" ...") == (max_lines < 10) for text in shown)
    check_nothing_is_hidden(ax)
    plt.close(ax.figure)


def test_equal_scores_are_shown_in_order():
    ax = plot.top_samples(torch.ones(4, 1), ["a", "b", "c", "d"], ["e"], 0, Figure().subplots(), k=2)
    assert [child.texts[0].get_text() for child in ax.child_axes] == ["e", "a", "b", "d", "c"]


@pytest.mark.parametrize(
    "image, shown",
    [
        (torch.arange(4.0), [[0, 1 / 3], [2 / 3, 1]]),
        (torch.tensor([[[-1.0, 1.0], [0.0, 0.0]]]), [[0, 1], [0.5, 0.5]]),
        (np.array([[0, 255], [51, 0]], dtype=np.uint8), [[0, 1], [0.2, 0]]),
        (torch.full((2, 2), 0.25), [[0.25, 0.25], [0.25, 0.25]]),
    ],
)
def test_images_are_scaled(image, shown):
    ax = plot.top_samples(torch.arange(4.0)[:, None], [image] * 4, [(image, 1)], 0, Figure().subplots(), k=1)
    assert all(np.allclose(child.images[0].get_array(), shown) for child in ax.child_axes)


def test_texts_are_cut_where_their_place_ends_and_tokens_are_decoded():
    words = {number: f"word{number} " for number in range(4)}
    ax = plot.top_samples(
        torch.arange(4.0)[:, None], torch.arange(4)[:, None], torch.zeros(1, 1), 0, Figure().subplots(), k=1,
        show=lambda tokens: words[int(tokens)] * 200,
    )
    ax.figure.draw_without_rendering()
    texts = [child.texts[0] for child in ax.child_axes]
    assert [text.get_text().split()[0] for text in texts] == ["word0", "word3", "word0"]
    assert all(text.get_text().endswith(" ...") for text in texts)
    for child, text in zip(ax.child_axes, texts, strict=True):
        inside, place = text.get_window_extent(), child.get_window_extent()
        assert inside.x1 <= place.x1 + 1 and inside.y0 >= place.y0 - 1


def test_results_draw_the_same_pictures():
    for mine, theirs in ((CURVES["a"].plot, plot.detection), (REMOVAL.plot, plot.removal), (FLIPS.plot, plot.flips)):
        one, two = mine(Figure().subplots()), theirs(mine.__self__, Figure().subplots())
        assert [line.get_xydata().tolist() for line in one.lines] == [line.get_xydata().tolist() for line in two.lines]
        assert names(one) == names(two) and one.get_xlabel() == two.get_xlabel()
    left, right = judge(SCORE, TARGETS).figure.axes
    typical = typical_of_the_varied()
    expected = plot.predicted_actual(SCORE, TARGETS, Figure().subplots(), test=typical)
    assert right.get_title() == f"typical {expected.get_title()}"
    assert left.get_xlabel() == plot.distribution(LDS["mine"], Figure().subplots()).get_xlabel()


NO_IMAGE = torch.zeros(40, 5)
BAD = {
    "no methods": (lambda: plot.methods({}), ValueError, "results: expected one method or more"),
    "methods of a list": (lambda: plot.methods([0.5]), TypeError, "expected a Leaderboard, or a dict.*got list"),
    "no interval": (lambda: plot.methods({"a": "high"}), TypeError, r"results, 'a': .*\(mean, low, high\).*got 'high'"),
    "two numbers": (lambda: plot.methods({"a": (0.1, 0.2)}), TypeError, r"results, 'a': expected a number or"),
    "no metric": (lambda: plot.methods(INTERVALS, metric="auc"), ValueError, "expected one of lds, loo, mislabel, got"),
    "no rows": (lambda: plot.methods(BOARD, metric="loo"), ValueError, "no rows for 'loo'; it has lds, mislabel"),
    "ceiling": (lambda: plot.methods(INTERVALS, ceiling="high"), TypeError, "ceiling: expected a number"),
    "a matrix": (lambda: plot.distribution(SCORE), ValueError, r"shape \(num_test,\).*got shape \(40, 12\)"),
    "not one": (lambda: plot.distribution({"a": SCORE[0] * 9}), ValueError, r"correlations, 'a': .*in \[-1, 1\]"),
    "all nan": (lambda: plot.distribution(torch.full((3,), math.nan)), ValueError, r"got shape \(3,\) of nan"),
    "other tests": (lambda: plot.distribution({"a": torch.zeros(2), "b": torch.zeros(3)}), ValueError, "a: 2, b: 3"),
    "taken name": (lambda: plot.distribution({"ceiling": torch.zeros(2)}, ceiling=torch.ones(2)), ValueError, "last"),
    "key": (lambda: plot.distribution({1: torch.zeros(2)}), TypeError, "names of methods as keys, got 1"),
    "no test": (lambda: plot.predicted_actual(SCORE, TRUTH, test=12), ValueError, "test: .* a position from 0 to 11"),
    "a half": (lambda: plot.predicted_actual(SCORE, TRUTH, test=0.5), TypeError, "test: expected the position"),
    "constant": (lambda: plot.predicted_actual(SCORE * 0, TRUTH), ValueError, "of every test sample is undefined"),
    "other shape": (lambda: plot.predicted_actual(SCORE[:9], TRUTH), ValueError, "score"),
    "no curve": (lambda: plot.detection({"a": 0.9}), TypeError, "curves, 'a': expected a DetectionCurve.*got float"),
    "other data": (lambda: plot.detection(CURVES | {"c": detection_curve([1, 2], [0, 1])}), ValueError, "same data"),
    "no detection": (lambda: plot.roc(CURVES), TypeError, "detections, 'a': expected what mislabel_detection_auc"),
    "no removal": (lambda: plot.removal(FLIPS), TypeError, "what removal_test returns, got Brittleness"),
    "empty removal": (lambda: plot.removal(SimpleNamespace(rows=[])), ValueError, "got one without rows"),
    "units": (lambda: plot.removal(REMOVAL, units="percent"), ValueError, "'spreads' or 'target', got 'percent'"),
    "no flips": (lambda: plot.flips(REMOVAL), TypeError, "what brittleness returns, got RemovalTest"),
    "too few": (lambda: plot.top_samples(SCORE, TESTS, TESTS, 0), ValueError, r"score, train: .*\(40, 12\) and 12 i"),
    "turned": (lambda: plot.top_samples(SCORE, IMAGES, IMAGES, 0), ValueError, "score, test: expected a matrix"),
    "no sample": (lambda: plot.top_samples(SCORE, IMAGES, TESTS, -1), ValueError, "sample: .* a position from 0 to"),
    "k": (lambda: plot.top_samples(SCORE, IMAGES, TESTS, 0, k=21), ValueError, "k: expected 1 to 20, half"),
    "nan": (lambda: plot.top_samples(SCORE / 0 * 0, IMAGES, TESTS, 0), ValueError, "score: NaN or infinite at train"),
    "no image": (lambda: plot.top_samples(SCORE, NO_IMAGE, TESTS, 0), ValueError, r"train, sample \d+: .*\(5,\)"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*correlations are nan")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_leaves_no_figure_behind(case):
    call, error, message = BAD[case]
    before = plt.get_fignums()
    with pytest.raises(error, match=message):
        call()
    assert plt.get_fignums() == before


def test_an_undefined_auc_is_refused():
    with pytest.warns(UserWarning, match="no mislabelled samples"):
        nothing = mislabel_detection_auc([1.0, 2.0], [0, 0])
    with pytest.raises(ValueError, match="detections, 'scores': the AUC is undefined"):
        plot.roc(nothing)
    with pytest.warns(UserWarning, match="no mislabelled samples"):
        nothing = detection_curve([1.0, 2.0], [0, 0])
    with pytest.raises(ValueError, match="with some wrong labels"):
        plot.detection(nothing)


def test_intervals_as_they_are_computed_are_drawn():
    interval = lds_interval(SCORE, TRUTH)
    ax = plot.methods({"mine": interval}, Figure().subplots())
    assert [line.get_xdata().tolist() for line in ax.lines if line.get_marker() in "|o"] == [
        [interval.low, interval.high], [interval.mean],
    ]  # fmt: skip
