"""Time and peak memory of curvature at scale. Run with -s to see the table: minutes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = """
import re, time
from pathlib import Path
import torch
from torch import nn
from lib.stability import AscentDescent, Curvature, critical_learning_rate, output_gram

class Block(nn.Module):
    def __init__(self, into, out, stride):
        super().__init__()
        self.first = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(8, out), nn.GroupNorm(8, out)])
        short = nn.Conv2d(into, out, 1, stride, bias=False)
        self.short = nn.Sequential() if into == out else nn.Sequential(short, nn.GroupNorm(8, out))

    def forward(self, x):
        inner = self.norms[1](self.second(torch.relu(self.norms[0](self.first(x)))))
        return torch.relu(inner + self.short(x))

def resnet18(outputs):
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [Block(a, b, 1 + (a != b)) for a, b in zip(widths, widths[1:])]
    head = [nn.Conv2d(1, 64, 7, 2, 3, bias=False), nn.GroupNorm(8, 64), nn.ReLU()]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, outputs)]
    return nn.Sequential(*head, nn.MaxPool2d(3, 2, 1), *blocks, *tail)

def conv(widths):
    layers = []
    for a, b in zip([1, *widths], widths):
        layers += [nn.Conv2d(a, b, 3, 2 if a < 128 else 1, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 1))

def softmax(n):
    net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    y, forget = torch.arange(n) % 10, torch.arange(n) < n // 5
    curvature = Curvature.from_model(net, torch.randn(n, 64), y, forget, "cross_entropy")
    critical_learning_rate(curvature, AscentDescent(0.05, 64, 16, damping=0.1))

def scalar(net, n):
    Curvature.from_model(net, torch.randn(n, 1, 28, 28), torch.randn(n), torch.arange(n) < n // 5)

torch.manual_seed(0)
start, spent = time.perf_counter(), time.process_time()
{call}
peak = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**20
print(time.perf_counter() - start, time.process_time() - spent, peak)
"""

# What is called, the most seconds on two idle cores and the most GB, PyTorch's own included.
TARGETS = {
    "η*, n = 1500, C = 10, p = 1,210": ("softmax(1500)", 120, 4),
    "Gram, conv net, n = 1000, p = 1e6": ("scalar(conv([64, 128, 256, 270]), 1000)", 60, 4),
    "Gram, ResNet-18, n = 200, p = 1.1e7": ("scalar(resnet18(1), 200)", 120, 4),
    "sketch, ResNet-18, N = 1500, n = 1000, C = 10": (
        "output_gram(resnet18(10), torch.randn(1500, 1, 28, 28), trained=1000, sketch=4096)",
        900,
        8,
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_curvature_at_scale(name, capsys):
    call, most_seconds, most_memory = TARGETS[name]
    done = subprocess.run(
        [sys.executable, "-c", SETUP.replace("{call}", call)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
    wall, processor, memory = map(float, done.stdout.split())
    with capsys.disabled():
        print(f"\n{name}: {wall:.0f} s, {processor:.0f} processor seconds, {memory:.1f} GB")
    assert memory <= most_memory
    # Of two cores: other work on the machine then counts as little as can be.
    assert processor <= 2 * most_seconds
