"""The heat-map chapter's live data, all of it: two minutes on two cores is the aim."""

import joblib

from lib.book import heat_maps, stored


def test_live_chapter(benchmark):
    """Training, curvature, exact frontiers, linearised and real runs of every map, cold."""
    tasks = heat_maps.tasks(heat_maps.LIVE)
    results = benchmark.pedantic(stored.results, args=(heat_maps, "live", {}, tasks), rounds=1)
    seconds = {name: result.provenance.seconds for name, result in results.items()}
    benchmark.extra_info.update(seconds, processors=joblib.cpu_count(), total=sum(seconds.values()))
    print(f"{sum(seconds.values()):.0f} processor seconds on {joblib.cpu_count()} processors")
