"""What is known before any step: the retain set's sharpness, and two guarantees.

The guarantees are theorems about f_0 + Jδ with the exact loss, so about the network itself where it
is linear in what is trained, and about its tangent elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from lib.checks import require_kind, require_mask, require_nonnegative
from lib.stability.algorithm import AscentDescent
from lib.stability.losses import loss_of
from lib.unlearning.paths import slopes
from lib.unlearning.tangent import TangentModel, fitting

# Largest eigenvalue of ∂²ℓ/∂f² over all outputs, and largest |∂ℓ/∂f|: softmax covariance ⪯ ½I and
# |p − e_y| ≤ √2.
CURVATURE = {"cross_entropy": 0.5, "logistic": 0.25, "squared": 1.0}
SLOPE = {"cross_entropy": 2**0.5, "logistic": 1.0}


class Containment(NamedTuple):
    """How far ascent–descent can go, whatever the curvature becomes on the way.

    convexity: μ = λ − α·c·λ_max(J_fJ_fᵀ)/n_f, by which the mixed objective is strongly convex if
    it is > 0; smoothness: L = λ + (1−α)·c·λ_max(J_rJ_rᵀ)/n_r; distance: ‖∇F(w_0)‖/μ, a bound on
    ‖δ_∞‖ in units of the weights, ∞ if μ ≤ 0; c bounds ∂²ℓ/∂f² (½ cross-entropy, ¼ logistic, 1
    squared). Full-batch descent with 0 < η < 2/L reaches the one rest point from every start.
    """

    convexity: float
    smoothness: float
    distance: float


def containment(
    tangent: TangentModel,
    targets: Tensor,
    forget: Tensor | Sequence[int],
    algorithm: AscentDescent,
    *,
    loss: str = "cross_entropy",
) -> Containment:
    """Damping that keeps the displacement bounded, with the exact loss (book, thm-containment).

    F(δ) = (1−α)/n_r Σ_R ℓ_i − α/n_f Σ_F ℓ_j + λ/2 ‖δ‖²; no weight decay. Bounded is not unlearned
    or saved: the forget target may well be reached inside.

    Args:
        tangent, targets, forget, loss: as in `follow`.
        algorithm: its mixing and damping are read.

    Raises:
        ValueError: naming the argument, as `follow` does.
    """
    require_kind("algorithm", algorithm, AscentDescent)
    mask, checked = fitting(tangent, targets, forget, loss)
    retain_top, forget_top = (_top(tangent, members) for members in (~mask, mask))
    a, bound = algorithm.mixing, CURVATURE[loss]
    convexity = algorithm.damping - a * bound * forget_top / int(mask.sum())
    smoothness = algorithm.damping + (1 - a) * bound * retain_top / int((~mask).sum())
    n = len(mask)
    push = slopes(tangent.outputs[:n, :, None], checked[:n], loss)[:, :, 0].double()
    push *= torch.where(mask, -a / mask.sum(), (1 - a) / (~mask).sum())[:, None].to(push)
    gram = tangent.kernel[: push.numel()].double()
    gradient = float((push.flatten() @ gram @ push.flatten()).clamp_min(0).sqrt())
    return Containment(convexity, smoothness, gradient / convexity if convexity > 0 else torch.inf)


def fastest_rise(
    tangent: TangentModel,
    forget: Tensor | Sequence[int],
    algorithm: AscentDescent,
    learning_rate: float,
    *,
    loss: str = "cross_entropy",
) -> Tensor:
    """The most that each forget sample's loss can rise in one step, whatever the batches are.

    η s²[(1−α) max_{i∈R}‖K_ji‖ + α max_{l∈F}‖K_jl‖], spectral norms of C × C blocks, s = √2 for
    cross-entropy and 1 for the logistic loss, bounds both on |∂ℓ/∂f| and on the loss's slope in f
    (book, thm-least-steps). A sample's loss is at target no earlier than after (target −
    ℓ_j(0))/rise_j steps, the forget set's mean no earlier than (target − mean ℓ)/mean rise.

    Args:
        tangent, forget: as in `follow`; a calibrated speed counts.
        algorithm: at most B samples a batch, so not Bernoulli; no momentum.
        learning_rate: η ≥ 0 with ηλ ≤ 1.
        loss: "cross_entropy" or "logistic".

    Returns:
        (n_f,) float64, in the order of the forget samples.

    Raises:
        ValueError: naming the argument outside these hypotheses.
    """
    require_kind("tangent", tangent, TangentModel)
    require_kind("algorithm", algorithm, AscentDescent)
    learning_rate = require_nonnegative("learning_rate", learning_rate)
    algorithm.require_plain("the fastest rise")
    if algorithm.sampling == "bernoulli":
        raise ValueError(
            "algorithm.sampling must bound the samples in a batch for the fastest rise, "
            "got 'bernoulli', whose batches have up to n"
        )
    if not isinstance(loss, str) or loss not in SLOPE:
        raise ValueError(f"loss must be one of {sorted(SLOPE)}, with bounded slope, got {loss!r}")
    if learning_rate * algorithm.damping > 1:
        raise ValueError(
            f"learning_rate must be at most 1/damping = {1 / algorithm.damping:.3g}, "
            f"got {learning_rate!r}"
        )
    mask = require_mask(forget, tangent.trained, "tangent").to(tangent.outputs.device)
    n, c = len(mask), tangent.outputs.shape[1]
    blocks = tangent.kernel[: n * c].view(n, c, n, c)[mask].double().permute(0, 2, 1, 3)
    norms = torch.linalg.matrix_norm(blocks, ord=2)
    retain, ascend = norms[:, ~mask].amax(dim=1), norms[:, mask].amax(dim=1)
    a = algorithm.mixing
    rate = learning_rate * tangent.speed * SLOPE[loss] ** 2
    return rate * ((1 - a) * retain + a * ascend)


def retain_sharpness(
    tangent: TangentModel,
    targets: Tensor,
    forget: Tensor | Sequence[int],
    *,
    loss: str = "cross_entropy",
) -> float:
    """λ_max(H_r) at the weights: sharpness of the retain set's mean loss, GGN.

    Full-batch descent on the retain loss alone is stable for η(1−α) < 2/λ_max(H_r); for networks
    trained with cross-entropy that edge holds to a factor of about two (book, tangent_model).

    Args:
        tangent, targets, forget, loss: as in `follow`.

    Raises:
        ValueError: naming the argument.
        ArpackNoConvergence: if the Lanczos run does not converge.
    """
    mask, checked = fitting(tangent, targets, forget, loss)
    n, c = len(mask), tangent.outputs.shape[1]
    outputs, kernel = tangent.outputs[:n], tangent.kernel[: n * c]
    root = loss_of(loss).curvature_root(outputs, checked[:n])
    if root is None:
        root = torch.eye(c, dtype=outputs.dtype, device=outputs.device).expand(n, c, c)
    root = root * (~mask)[:, None, None] / (~mask).sum() ** 0.5

    def times(vector: np.ndarray) -> np.ndarray:
        v = torch.from_numpy(vector).to(kernel).view(n, c, 1)
        pushed = kernel @ (root @ v).flatten()
        return (root.transpose(1, 2) @ pushed.view(n, c, 1)).flatten().double().cpu().numpy()

    if not bool(kernel.any()) or not bool(root.any()):
        return 0.0  # which Lanczos runs do not take
    operator = scipy.sparse.linalg.LinearOperator((n * c, n * c), matvec=times, dtype=np.float64)
    start = np.ones(n * c)
    top = scipy.sparse.linalg.eigsh(operator, 1, v0=start, tol=1e-6, return_eigenvectors=False)
    return float(top[0])


def _top(tangent: TangentModel, members: Tensor) -> float:
    """λ_max(J_cJ_cᵀ) of the trained samples `members`, (n,) bool."""
    rows = members.repeat_interleave(tangent.outputs.shape[1]).nonzero()[:, 0]
    gram = tangent.kernel[rows][:, rows].double()
    return float(torch.linalg.eigvalsh((gram + gram.T) / 2)[-1])
