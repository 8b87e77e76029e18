import pytest

from lib import store
from lib.book import heat_maps, stored
from lib.book.heat_maps import FULL, LIVE, MapTask, Size, tasks
from lib.experiments.settings import Network

TINY = Size(
    columns=3,
    rows=3,
    seeds=2,
    damped_seeds=2,
    linear_runs=1,
    steps=20,
    damped_steps=20,
    multiples=2,
    resistance_seeds=2,
)


def results(scale, *, names=("mixing",), base=None):
    """The chapter's, at a tiny size."""
    named = {name: tasks(TINY, base)[name] for name in names}
    return stored.results(heat_maps, scale, named, named)


def test_published_maps_are_as_large_as_the_chapter_says():
    named = tasks(FULL)
    main = [n for n in named if f"{n}_damped" in named or n.endswith("_damped")]
    assert len(main) == 12
    for name in (*main, "reshuffled"):
        task = named[name]
        assert isinstance(task, MapTask)
        assert len(task.x[1]) * len(task.y[1]) >= 1000
        assert task.seeds >= 5
    assert all(len(task.x[1]) == len(task.y[1]) == 21 for task in live_maps())


def live_maps():
    named = tasks(LIVE)
    return [named[n] for n in ("mixing", "retain_batch", "forget_batch", "learning_rate_low")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    return tmp_path / "heat_maps"


@pytest.mark.long
def test_stored_results_come_back_and_stale_ones_do_not(folder, monkeypatch):
    full = results("full", names=["mixing", "resistance"])
    read = results("stored", names=["mixing", "resistance"])
    for name, result in full.items():
        assert result.table.equals(read[name].table)
    assert len(full["mixing"].table) == 18
    assert len(full["resistance"].table) == 26
    with pytest.raises(store.StaleResult, match="dim"):
        results("stored", base=Network(dim=50), names=["mixing"])
    with pytest.raises(store.MissingResult):
        results("stored", names=["retain_batch"])
    monkeypatch.setattr(stored, "code_of", lambda chapter: "of other code")
    with pytest.raises(store.StaleResult, match="make sweep"):
        results("stored", names=["mixing"])


@pytest.mark.long
def test_without_stored_results_the_page_computes_live(folder):
    with pytest.warns(UserWarning, match="computing live"):
        live = results("stored", names=["mixing"])
    assert len(live["mixing"].table) == 18
    assert not folder.exists()
    again = results("live", names=["mixing"])
    assert live["mixing"].table.equals(again["mixing"].table)


def test_the_network_of_live_maps_is_the_page_s(folder):
    base = Network(filters=3, dim=30, n_retain=6, n_forget=3)
    task = tasks(TINY, base)["retain_batch"]
    assert isinstance(task, MapTask)
    assert (task.cell.network.filters, task.cell.network.dim) == (3, 30)
    assert max(task.y[1]) == 6


def test_columns_of_the_forget_batch_maps_have_networks_of_their_own():
    task = tasks(TINY, Network(filters=3, dim=30, n_retain=6, n_forget=3))["forget_batch"]
    assert isinstance(task, MapTask)
    table = task.table(None)
    assert table["forget_batch"].nunique() == len(task.x[1])
    assert (table.groupby("seed")["forget_batch"].nunique() == 1).all()
    assert (table.groupby("forget_batch")["seed"].nunique() == 2).all()


def test_an_unknown_scale_is_named():
    with pytest.raises(ValueError, match="scale must be 'stored', 'live' or 'full', got 'large'"):
        results("large")
