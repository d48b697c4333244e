"""NT-Xent, the normalised temperature-scaled cross-entropy of SimCLR (Chen et al. 2020, Eq. 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from winnow.simclr.team import Team

ALONE = Team()


def nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """Mean contrastive loss over the 2n views of a minibatch, in float32 (in float64 if that is what comes in).

    For each view, its partner is the positive and the 2(n - 1) other views are the negatives (the paper's L^{i,j}).

    Args:
        z0, z1: (n, d) projections of the two views of the same n images; any float dtype.
        temperature: tau > 0; divides the cosine similarity.

    Raises:
        ValueError: the shapes differ, are not (n, d), or n < 2 (a lone pair has no negatives).
    """
    if z0.shape != z1.shape or z0.ndim != 2 or len(z0) < 2:
        raise ValueError(f"z0, z1: need two (n, d) tensors with n >= 2, got {tuple(z0.shape)} and {tuple(z1.shape)}")
    return shared_nt_xent(z0, z1, temperature, len(z0), ALONE)


def shared_nt_xent(z0: Tensor, z1: Tensor, temperature: float, count: int, team: Team) -> Tensor:
    """One process's part of the loss of a minibatch of `count` images, over the negatives of the whole team.

    Its mean over the team is `nt_xent` of the whole minibatch, and so is the mean of its gradients.

    Args:
        z0, z1: (n_r, d), this process's share of the minibatch.
    """
    with torch.autocast(z0.device.type, enabled=False):
        z0, z1 = (F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1) for z in (z0, z1))  # (n_r, d)
        all0, start = team.gather(z0, count)  # (n, d)
        all1, _ = team.gather(z1, count)
        similarity = torch.cat([z0, z1]) @ torch.cat([all0, all1]).T / temperature  # (2n_r, 2n)
        own = torch.arange(start, start + len(z0), device=z0.device)  # (n_r,)
        rows = torch.arange(2 * len(z0), device=z0.device)
        itself = torch.cat([own, own + count])
        similarity = similarity.index_put((rows, itself), similarity.new_full((), float("-inf")))
        partner = torch.cat([own + count, own])  # (2n_r,)
        return F.cross_entropy(similarity, partner, reduction="sum") * (team.size / (2 * count))
