"""Every kind of model against brute force in float64, or refused by name."""

import copy
import operator
from pathlib import Path

import pytest
import torch
from torch import nn

from lib.stability.curvature import Curvature
from lib.stability.modules import mapped
from tests.support.zoo import REFUSED, WORKS, Kind

each_kind = pytest.mark.parametrize("kind", WORKS, ids=lambda kind: kind.name)


def made(kind: Kind):
    torch.manual_seed(5)
    model, inputs, targets = kind.make()
    if not any(parameter.itemsize < 8 for parameter in model.parameters()):
        return model, inputs, targets
    return model, mapped(lambda t: t.to(next(model.parameters()).dtype), inputs), targets


def brute_hessians(kind, model, inputs, targets):
    """Σ over unmasked tokens of JᵀΛJ, (n, p, p), one sample and one output at a time, float64."""
    model = getattr(model, "_orig_mod", model)
    model = copy.deepcopy(model.module if isinstance(model, nn.DataParallel) else model).double()
    chosen = [p for p in model.parameters() if p.requires_grad]
    if "parameters" in kind.options:
        prefixes = tuple(kind.options["parameters"])
        chosen = [p for k, p in model.named_parameters() if k.startswith(prefixes)]
    inputs = mapped(lambda t: t.double() if t.is_floating_point() else t, inputs)
    forward = kind.options.get("forward") or nn.Module.__call__
    hessians = []
    for i in range(len(targets)):
        out = forward(model, mapped(operator.itemgetter(slice(i, i + 1)), inputs))
        outs, labels = out.reshape(-1, out.shape[-1]), targets[i].reshape(-1)
        tokens = [token_hessian(f, y, chosen) for f, y in zip(outs, labels, strict=True)]
        hessians.append(torch.stack(tokens).sum(0))
    return torch.stack(hessians)


def token_hessian(f, y, chosen):
    rows = []
    for z in f:
        row = torch.autograd.grad(z, chosen, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in row]))
    jacobian, p = torch.stack(rows), f.softmax(0).detach()
    weight = torch.diag(p) - torch.outer(p, p)
    return (y != -100) * (jacobian.T @ weight @ jacobian)


@each_kind
def test_a_kind_of_model_has_brute_forces_curvature(kind):
    model, inputs, targets = made(kind)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    forget = [0, 2]
    curvature = Curvature.from_model(model, inputs, targets, forget, kind.loss, **kind.options)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    exact = brute_hessians(kind, model, inputs, targets)
    mine = curvature.factors @ curvature.factors.transpose(1, 2)
    for power in (mine, exact):
        assert power.abs().max() > 0
    products = [torch.einsum("iab,jba->ij", H, H) for H in (mine, exact)]
    scale = float(products[1].max())
    torch.testing.assert_close(products[0], products[1], rtol=0, atol=1e-6 * scale)
    top = [torch.linalg.eigvalsh(H.mean(0)).flip(0)[: len(mine[0])] for H in (mine, exact)]
    torch.testing.assert_close(*top, rtol=0, atol=1e-6 * float(top[1][0]))


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.name)
def test_a_kind_of_model_without_curvature_is_refused_by_name(kind):
    model, inputs, targets = made(kind)
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=kind.refused):
        Curvature.from_model(model, inputs, targets, [0, 2], kind.loss, **kind.options)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_reference_page_lists_the_zoo():
    page = (Path(__file__).parents[2] / "book" / "api.md").read_text("utf-8")
    listed = [line for line in page.splitlines() if line.startswith("| ")]
    rows = [f"| {kind.name} | {kind.note or 'yes'} |" for kind in WORKS]
    rows += [f"| {kind.name} | refused |" for kind in REFUSED]
    assert listed[1:] == rows
