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


def test_unknown_losses_are_refused_by_name():
    with pytest.raises(ValueError, match=r"loss must be one of .*cross_entropy.*, got 'hinge'"):
        loss_of("hinge")
    with pytest.raises(ValueError, match=r"loss must be one of .*, got 'cross_entropy'"):
        scalar_loss("cross_entropy")
