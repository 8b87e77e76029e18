"""Per-sample Jacobians of any module, and Gram matrices of their rows: never a p × p matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp

from lib.checks import require_count, require_finite
from lib.stability.gram import RowStream, Seeds
from lib.stability.losses import loss_of, require_targets
from lib.stability.modules import Chosen, Forward, PerSample, count, part, per_sample, samples
from lib.stability.rows import Cotangents, RowSource

# Samples on which a sketched Gram matrix is compared with the exact one.
_COMPARED = 8


class OutputGram(NamedTuple):
    """What a network linearised at its weights needs.

    outputs (N, C); gram (N·C, n·C), K = J J[:n]ᵀ, sample-major, unweighted; error: of a sketched
    K, ‖K̂ − K‖_F/‖K‖_F over a few samples whose exact K was computed too; 0.0 without a sketch.
    """

    outputs: Tensor
    gram: Tensor
    error: float


def loss_jacobian(
    model: torch.nn.Module,
    inputs: Any,
    targets: Tensor | None,
    loss: str,
    *,
    forward: Forward | None = None,
    parameters: Chosen = None,
) -> Tensor:
    """Rows of Λ_i^{1/2}ᵀ J_i, so that the GGN of sample i is H_i = rows[i].T @ rows[i].

    Args:
        model, inputs, targets, loss, forward, parameters: as in `Curvature.from_model`.

    Returns:
        (n, r, p) float64; r the number of outputs, p that of trained parameters, flattened in the
        order of `model.parameters()`.

    Raises:
        ValueError: as `Curvature.from_model`.
    """
    source, x, seeds = weighted_rows(model, inputs, targets, loss, forward, parameters)
    rows = RowStream(source, x, seeds).together()
    _require_finite_results(rows)
    return rows.view(count(x), source.rank, -1).double()


def weighted_rows(
    model: torch.nn.Module,
    inputs: Any,
    targets: Tensor | None,
    loss: str,
    forward: Forward | None = None,
    parameters: Chosen = None,
) -> tuple[RowSource, Any, Seeds]:
    """What makes the rows of `loss_jacobian`: their source, the inputs, a root of Λ as cotangents.

    Raises:
        ValueError: as `Curvature.from_model`.
    """
    curvature_root = loss_of(loss).curvature_root
    x, y = samples(inputs, targets)
    if y is None:
        raise ValueError("targets must be given where inputs do not bring their own, got None")
    n = count(x)
    source = RowSource.of(per_sample(model, x, forward=forward, parameters=parameters), x)
    tokens, classes = source.shape
    y = require_targets(loss, y, n, tokens, classes).to(source.net.device)

    def seeds(chosen: slice) -> Cotangents:
        labels = y[chosen.start * tokens : chosen.stop * tokens]

        def root(out: Tensor) -> Tensor:
            roots = curvature_root(out.flatten(0, 1), labels)
            return _one_hot(out) if roots is None else _by_token(roots, out)

        return root

    return source, x, seeds


def output_gram(
    model: torch.nn.Module,
    inputs: Any,
    *,
    trained: int | None = None,
    forward: Forward | None = None,
    parameters: Chosen = None,
    sketch: int | None = None,
    chunk_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> OutputGram:
    """Outputs f_i and the empirical tangent kernel K_ij = J_iJ_jᵀ of a network at its weights.

    Args:
        model, forward, parameters: as in `Curvature.from_model`; outputs (N,), (N, 1) or (N, C).
        inputs: N samples: tensor, dict or tuple of tensors, Dataset or unshuffled DataLoader.
        trained: number n of leading samples that can be trained on, K's columns; all by default.
        sketch: None for the exact K, or the width k of a CountSketch of J, E K̂ = K and relative
            error about √(2/k) an entry. Linear layers that see one vector a sample stay exact.
        chunk_size: samples whose rows are kept at a time; by default what fits into 1 GiB.
        dtype: of K, float32 or float64; J itself is in the model's precision, at least float32.
        device: where to compute; by default where the model is.
        seed: of the sketch.

    Raises:
        ValueError: naming the argument; for the model as in `Curvature.from_model`.

    Source: Jacot, Gabriel and Hongler (2018); Charikar, Chen and Farach-Colton (2002).
    """
    x, _ = samples(inputs, None)
    total = count(x)
    n = total if trained is None else trained
    require_count("trained", n, 1)
    if n > total:
        raise ValueError(f"trained must be in [1, {total}], the samples of inputs, got {n}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    net = per_sample(model, x, forward=forward, parameters=parameters, device=device)
    source = RowSource.of(net, x)
    if source.shape[0] > 1:
        raise ValueError("model must give outputs (N, C), got one row of outputs a token")

    def gram(inputs: Any, columns: int, width: int | None) -> tuple[Tensor, Tensor]:
        rows = RowStream(source, inputs, lambda _: _one_hot, chunk_size, width, seed)
        return rows.outputs_and_gram(columns, dtype)

    outputs, K = gram(x, n, sketch)
    _require_finite_results(outputs, K)
    error = 0.0
    if sketch is not None:
        few = part(x, torch.linspace(0, total - 1, min(total, _COMPARED), device="cpu").long())
        (_, exact), (_, close) = (gram(few, count(few), width) for width in (None, sketch))
        error = float(torch.linalg.norm(close - exact) / torch.linalg.norm(exact))
    return OutputGram(outputs, K, error)


def jacobian_vector(
    model: torch.nn.Module,
    inputs: Any,
    vector: Tensor,
    *,
    forward: Forward | None = None,
    parameters: Chosen = None,
    chunk_size: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """J_i w, (N, C), the derivative of the outputs along w, by forward-mode differentiation.

    Args:
        model, inputs, forward, parameters, device: as in `output_gram`.
        vector: w, (p,), in the order of the chosen among `model.parameters()`.
        chunk_size: samples at a time; 256 by default.

    Raises:
        ValueError: naming the argument; for the model as in `Curvature.from_model`.
    """
    x, _ = samples(inputs, None)
    net = per_sample(model, x, forward=forward, parameters=parameters, device=device)
    sizes = [v.numel() for v in net.trained.values()]
    require_finite("vector", vector, sum(sizes))
    pieces = vector.detach().to(net.device).split(sizes)
    along = {
        k: w.view(v.shape).to(v) for (k, v), w in zip(net.trained.items(), pieces, strict=True)
    }
    step = 256 if chunk_size is None else chunk_size
    require_count("chunk_size", step, 1)
    chunks = [net.moved(part(x, slice(i, i + step))) for i in range(0, count(x), step)]
    return torch.cat([pushed(net, net.trained, chunk, along)[1] for chunk in chunks])


def pushed(
    net: PerSample, weights: dict[str, Tensor], x: Any, along: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """f(w) and J(w)v of a batch at any weights w, v `along` them by name, (b, C) each, detached."""
    try:
        out, product = jvp(lambda w: net.at(w, x).flatten(1), (weights,), (along,))[:2]
    except (NotImplementedError, RuntimeError):  # recurrent layers have no forward mode
        out, product = _twice_back(net, weights, x, along)
    return out.detach(), product.detach()


def _twice_back(
    net: PerSample, weights: dict[str, Tensor], x: Any, along: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """f, and Jv as the derivative of uᵀJv in u."""
    with torch.enable_grad():
        leaves = {k: v.detach().requires_grad_() for k, v in weights.items()}
        out = net.at(leaves, x).flatten(1)
        u = torch.zeros_like(out, requires_grad=True)
        back = torch.autograd.grad(
            out, list(leaves.values()), u, create_graph=True, materialize_grads=True
        )
        each = [(g * w).sum() for g, w in zip(back, along.values(), strict=True)]
        product = torch.stack(each).sum()
        return out, torch.autograd.grad(product, u, materialize_grads=True)[0]


def _require_finite_results(*results: Tensor) -> None:
    if not all(bool(result.isfinite().all()) for result in results):
        raise ValueError("inputs and model must give finite outputs and derivatives, got others")


def _one_hot(out: Tensor) -> Tensor:
    """Each output's own cotangent, (T·V, b, T, V)."""
    b, tokens, classes = out.shape
    eye = torch.eye(tokens * classes, dtype=out.dtype, device=out.device)
    return eye.view(-1, 1, tokens, classes).expand(-1, b, -1, -1)


def _by_token(roots: Tensor, out: Tensor) -> Tensor:
    """Columns of each token's (V, V) root, zero at the other tokens; (T·V, b, T, V)."""
    b, tokens, classes = out.shape
    eye = torch.eye(tokens, dtype=out.dtype, device=out.device)
    own = roots.view(b, tokens, classes, classes)
    return torch.einsum("btva,ts->tabsv", own, eye).reshape(-1, b, tokens, classes)
