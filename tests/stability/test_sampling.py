import pytest
import torch

from lib.stability.sampling import draw_counts, epoch_counts

MEMBERS = torch.tensor([[True] * 7 + [False] * 3, [False] * 2 + [True] * 8])


@pytest.mark.parametrize("sampling", ["bernoulli", "without_replacement", "with_replacement"])
def test_counts_have_the_right_mean_and_stay_with_the_members(sampling):
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([3.0, 5.0])
    draws = torch.stack(
        [draw_counts(MEMBERS, size, sampling, generator).double() for _ in range(4000)]
    )
    assert not draws[:, ~MEMBERS].any()
    expected = size[:, None] / MEMBERS.sum(1, keepdim=True) * MEMBERS
    torch.testing.assert_close(draws.mean(0), expected, rtol=0, atol=0.05)
    if sampling != "bernoulli":
        assert (draws.sum(2) == size).all()


def test_an_epoch_shows_every_member_once_and_drops_the_rest():
    """7 members by 3 and 8 members by 5: two and one batch an epoch, in a fresh order each time."""
    following = epoch_counts(MEMBERS, torch.tensor([3.0, 5.0]), torch.Generator().manual_seed(1))
    batches = torch.stack([following() for _ in range(400)])
    assert not batches[:, ~MEMBERS].any()
    assert (batches.sum(2) == torch.tensor([3, 5])).all()
    epochs = batches[:, 0].view(200, 2, 10).sum(1)
    assert epochs.max() == 1
    assert len(epochs.unique(dim=0)) == 7  # every sample is the one left out now and then
    shares = batches.double().mean(0)
    torch.testing.assert_close(shares[0, :7], torch.full((7,), 3 / 7), rtol=0, atol=0.1)
    torch.testing.assert_close(shares[1, 2:], torch.full((8,), 5 / 8), rtol=0, atol=0.1)
