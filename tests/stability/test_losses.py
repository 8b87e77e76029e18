import pytest
import torch
from torch.func import grad, hessian, vmap

from lib.stability.losses import LOSSES, loss_of, scalar_loss

OUTPUTS = torch.linspace(-3, 3, 12, dtype=torch.float64).view(4, 3)
CLASSES = torch.tensor([0, 2, 1, 1])


@pytest.mark.parametrize("name", ["squared", "logistic"])
def test_derivatives_of_the_scalar_losses_are_autograds(name):
    loss, f = scalar_loss(name), OUTPUTS.flatten()
    y = 1 - 2 * (torch.arange(12) % 3 == 0).double()
    torch.testing.assert_close(loss.slope(f, y), vmap(grad(loss.value))(f, y))
    torch.testing.assert_close(loss.curvature(f, y), vmap(grad(grad(loss.value)))(f, y))
    root = loss.curvature_root(f[:, None], y)
    square = torch.ones(12) if root is None else (root @ root.transpose(1, 2)).flatten()
    torch.testing.assert_close(square, loss.curvature(f, y))


def test_derivatives_of_the_cross_entropy_are_autograds():
    loss = LOSSES["cross_entropy"]

    def value(f, y):
        return loss.value(f[None], y[None])[0]

    torch.testing.assert_close(loss.slope(OUTPUTS, CLASSES), vmap(grad(value))(OUTPUTS, CLASSES))
    curvature = vmap(hessian(value))(OUTPUTS, CLASSES)
    torch.testing.assert_close(loss.curvature(OUTPUTS, CLASSES), curvature)
    root = loss.curvature_root(OUTPUTS, CLASSES)
    assert root is not None
    torch.testing.assert_close(root @ root.transpose(1, 2), curvature)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "message"),
    [
        ("cross_entropy", OUTPUTS, CLASSES.double(), r"class numbers in \[0, 3\)"),
        ("cross_entropy", OUTPUTS, CLASSES - 1, r"class numbers in \[0, 3\)"),
        ("cross_entropy", OUTPUTS, CLASSES + 1, r"class numbers in \[0, 3\)"),
        ("logistic", OUTPUTS[:, :1], torch.tensor([1.0, -1.0, 0.0, 1.0]), "±1"),
        ("logistic", OUTPUTS, torch.tensor([1.0, -1.0, -1.0, 1.0]), ".*output scalar"),
    ],
)
def test_targets_that_a_loss_has_no_curvature_for_are_refused(loss, outputs, targets, message):
    with pytest.raises(ValueError, match=f"targets must be {message}"):
        LOSSES[loss].curvature_root(outputs, targets)


def test_unknown_losses_are_refused_by_name():
    with pytest.raises(ValueError, match=r"loss must be one of .*cross_entropy.*, got 'hinge'"):
        loss_of("hinge")
    with pytest.raises(ValueError, match=r"loss must be one of .*, got 'cross_entropy'"):
        scalar_loss("cross_entropy")
