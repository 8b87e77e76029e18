"""A plan with its default options, as README shows it: a minute of two threads for 1,000 digits.

The network is at zero training error, where the plan takes longest: no setting keeps the floor, and
four real runs are made before that is said. The bar is in processor seconds, 120, as other work on
the machine then counts as little as can be. The peer is the real grid: all settings of the plan's
table, 200 steps each, extrapolated from three of its runs.
"""

import time

import torch
from sklearn.datasets import load_digits

from lib.stability import AscentDescent
from lib.unlearning import plan
from lib.unlearning.network_run import run_network


def test_plan_of_1000_digits(benchmark, capsys):
    pixels, classes = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels).float() / 16, torch.tensor(classes)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)]
    net = torch.nn.Sequential(*layers).float()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x[:1000]), y[:1000]).backward()
        optimiser.step()
    forget = torch.randperm(1000)[:100]
    data = (net.eval(), (x[:1000], y[:1000]), forget)
    begin = time.process_time()
    found = benchmark.pedantic(plan, data, {"holdout": (x[1000:], y[1000:])}, rounds=1)
    spent = time.process_time() - begin
    begin = time.process_time()
    for mixing in (0.05, 0.1, 0.3):
        update = AscentDescent(mixing, 64, 16, sampling="reshuffled")
        run_network(net, x, y, forget, update, 1e-3, steps=200, trained=1000)
    grid = (time.process_time() - begin) / 3 * len(found.table)
    peer = f"{len(found.table)} real runs: {grid:.0f} processor seconds"
    benchmark.extra_info.update(processor_s=spent, peer=peer, ratio=grid / spent)
    with capsys.disabled():
        print(f"\n{found}\n{spent:.0f} processor seconds; {peer}")
    assert spent <= 120
