import numpy as np
import pandas as pd
import pytest

from lib.experiments.resistance_runs import steepest_mean_steps
from lib.experiments.summary import (
    MapGrid,
    disagreements,
    missed_cells,
    near_frontier,
    negative_curvature,
)
from lib.stability import AscentDescent, gaussian_curvature, mean_operator

X, Y, SEEDS = [0.1, 1.0, 10.0], [1, 2, 3, 4], 3


def table(escape, **columns):
    """One row per cell and seed; a function of (x index, y index, seed) for each column."""
    names = {"escape_step": escape, **columns}
    rows = [
        {"snr": x, "batch": y, "seed": s, **{n: f(i, j, s) for n, f in names.items()}}
        for i, x in enumerate(X)
        for j, y in enumerate(Y)
        for s in range(SEEDS)
    ]
    return pd.DataFrame(rows)


def step(yes):
    return 7.0 if yes else np.inf


def grid():
    """Escapes from row 2 up, in one more cell than predicted, where two of three seeds escape."""
    return MapGrid.of(
        table(
            lambda i, j, s: step(j >= 2 or ((i, j) == (1, 1) and s < 2)),
            typical=lambda i, j, s: 1.0 if j >= 2 else -1.0,
            mean_square=lambda i, j, s: np.inf if j >= 2 or (i, j) == (1, 1) else -1.0,
            mean=lambda i, j, s: -1.0,
            twin_step=lambda i, j, s: step(j >= 2 or (i, j) == (1, 1)),
            forget_step=lambda i, j, s: step(j == 3 and i > 0),
            twin_forget_step=lambda i, j, s: step(j == 3),
        ).sample(frac=1, random_state=0)
    )


def test_rows_in_any_order_come_to_their_cells():
    g = grid()
    assert g.share("escape").shape == (4, 3)
    expected = np.array([[0, 0, 0], [0, 2 / 3, 0], [1, 1, 1], [1, 1, 1]])
    np.testing.assert_allclose(g.share("escape"), expected)


def test_agreement_displacement_and_stable_cells():
    g = grid()
    assert g.agreement() == pytest.approx(11 / 12)
    assert g.agreement("mean") == pytest.approx(5 / 12)
    assert g.agreement("mean_square") == 1.0
    assert g.displacement() == 0.0  # of 0, 2/3, 0 cells: the median
    assert g.displacement("mean") == 2.0
    assert g.stable_escapes() == (0, 5)
    assert g.summary()["typical"] == pytest.approx(100 * 11 / 12)


def test_a_moved_prediction_is_scored_on_the_cells_of_the_true_one():
    g = grid()  # predicted from row 2 up; all cells but none of these are near: 4 rows, NEAR = 2
    happened = g.happened("escape")
    for moved in (-1, 1, 2):
        expected = np.array([[y - moved >= 2] * 3 for y in range(4)])
        assert g.agreement_near(moved=moved) == (expected == happened).mean()
    assert g.agreement_near(moved=0) == g.agreement_near()
    # Down a row it is right in rows 0, 2, 3 and one cell of row 1; up, it misses all of row 2.
    assert g.summary()["moved"] == pytest.approx(100 * 10 / 12)


def test_near_is_within_two_cells():
    predicted = np.zeros((7, 1), dtype=bool)
    predicted[4:] = True
    assert near_frontier(predicted)[:, 0].tolist() == [False, False, True, True, True, True, False]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 4), (12, 10)])
def test_near_is_any_other_answer_in_the_window_cut_at_the_map_s_border(shape):
    predicted = np.random.default_rng(1).random(shape) < 0.1
    for (row, column), near in np.ndenumerate(near_frontier(predicted)):
        window = predicted[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        assert near == (window.any() and not window.all())


def test_kinds_of_disagreement():
    kinds = disagreements(grid())
    cell = 100 / 12
    assert kinds["chance"] == pytest.approx(cell)  # its twins escape, too
    assert kinds["kinks"] == 0
    assert kinds["restabilised"] == pytest.approx(cell)  # SNR 0.1, batch 4
    assert kinds["early"] == 0


def test_missed_cells_one_by_one():
    (row,) = missed_cells(grid()).to_dict("records")
    assert (row["snr"], row["batch"]) == (1.0, 2)
    assert row["typical"] == -1.0
    assert row["networks"] == pytest.approx(2 / 3)
    assert row["twins"] == 1.0


def test_the_frontier_is_interpolated_and_missing_where_there_is_none():
    g = grid()
    share = np.array([[0, 0, 1], [0.25, 0, 1], [0.75, 0, 1], [1, 0, 1]])
    np.testing.assert_allclose(g.frontier(share), [2.5, np.nan, np.nan])
    for wrong in (share.T, share.astype(str), np.full(share.shape, np.nan), share.astype(complex)):
        with pytest.raises(ValueError, match=r"share must be finite numbers of shape \(4, 3\)"):
            g.frontier(wrong)
    with pytest.raises(TypeError, match="share"):
        g.frontier(share.tolist())


def test_negative_curvature_is_that_of_the_mean_operator():
    curvature = gaussian_curvature(6, 3, 30, alignment=0.3, seed=0)
    algorithm, rate = AscentDescent(0.3, 6, 3), 0.05
    steps = steepest_mean_steps(curvature, algorithm, rate, 1e3)
    lowest = float(np.linalg.eigvalsh(mean_operator(curvature, algorithm).numpy())[0])
    assert lowest < 0
    assert negative_curvature(steps, rate, 1e3) == pytest.approx(-lowest, rel=1e-12)
    column = pd.Series([steps, np.inf])
    np.testing.assert_allclose(negative_curvature(column, rate, 1e3), [-lowest, 0.0], rtol=1e-12)
