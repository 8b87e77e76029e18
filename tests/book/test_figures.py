"""The heat map of a tidy table: what is in which cell."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib.book import figures as plotting
from lib.experiments import MapGrid


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_cells_stand_where_the_table_says(axes):
    table = pd.DataFrame({"a": [3.0, 1.0, 1.0, 3.0, 3.0], "b": [10, 10, 20, 20, 20]})
    table["v"] = [1.0, 2.0, 3.0, 4.0, 6.0]
    mesh = plotting.draw_heat_map(axes, table, "a", "b", "v")
    np.testing.assert_array_equal(mesh.get_array(), [[2.0, 1.0], [3.0, 5.0]])
    corners = np.array(mesh.get_coordinates())
    np.testing.assert_array_equal(corners[0, :, 0], [0, 2, 4])
    np.testing.assert_array_equal(corners[:, 0, 1], [5, 15, 25])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("a", "b")


def test_missing_and_nan_cells_stay_empty(axes):
    table = pd.DataFrame({"a": [1, 1, 1, 2], "b": [1, 1, 2, 2], "v": [1.0, np.nan, 2.0, 3.0]})
    mesh = plotting.draw_heat_map(axes, table, "a", "b", "v")
    cells = np.ma.getmaskarray(np.ma.asarray(mesh.get_array()))
    np.testing.assert_array_equal(cells, [[True, True], [False, False]])


def test_edges_on_a_logarithmic_axis_are_geometric(axes):
    axes.set_xscale("log")
    table = pd.DataFrame({"a": [0.1, 1.0, 10.0], "b": 1.0, "v": 1.0})
    corners = np.array(plotting.draw_heat_map(axes, table, "a", "b", "v").get_coordinates())
    np.testing.assert_allclose(np.log10(corners[0, :, 0]), [-1.5, -0.5, 0.5, 1.5])


@pytest.mark.parametrize("columns", [("a", "b", "word"), ("a", "b", "none")])
def test_columns_that_cannot_be_drawn_are_refused(axes, columns):
    table = pd.DataFrame({"a": [1.0], "b": [1.0], "word": ["x"]})
    with pytest.raises(ValueError, match=columns[2]):
        plotting.draw_heat_map(axes, table, *columns)
    with pytest.raises(ValueError, match="at least one row"):
        plotting.draw_heat_map(axes, table[:0], "a", "b", "a")


def test_step_maps_stand_row_by_row_with_title_and_colour_bar():
    cells = [(x, y, seed) for x in (0.1, 1.0) for y in (0.01, 0.1, 1.0) for seed in range(2)]
    table = pd.DataFrame(cells, columns=["snr", "mixing", "seed"])
    table["escape_step"] = np.where(table["mixing"] > 0.05, 9.0, np.inf)
    for prediction in ("mean", "mean_square", "typical"):
        table[prediction] = table["mixing"] - 0.05
    grid = MapGrid.of(table)
    figure = plotting.step_maps({f"{k}": (grid, 10**k) for k in (1, 2, 3, 4)}, columns=2)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["1", "2", "3", "4"]
    bars = [axes for axes in figure.axes if axes.get_ylabel() == "steps to escape"]
    assert [bar.get_ylim()[1] for bar in bars] == pytest.approx([10, 100, 1000, 10_000])
    plt.close(figure)
    with pytest.raises(ValueError, match="maps must fill rows of 2, got 1"):
        plotting.step_maps({"1": (grid, 10)}, columns=2)
