"""NT-Xent, the normalised temperature-scaled cross-entropy of SimCLR (Chen et al. 2020, Eq. 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """Mean contrastive loss over the 2n views of a minibatch, in float32.

    For each view, its partner is the positive and the 2(n - 1) other views are the negatives (the paper's L^{i,j}).

    Args:
        z0, z1: (n, d) projections of the two views of the same n images; any float dtype.
        temperature: tau > 0; divides the cosine similarity.

    Raises:
        ValueError: the shapes differ, are not (n, d), or n < 2 (a lone pair has no negatives).
    """
    if z0.shape != z1.shape or z0.ndim != 2 or len(z0) < 2:
        raise ValueError(f"z0, z1: need two (n, d) tensors with n >= 2, got {tuple(z0.shape)} and {tuple(z1.shape)}")
    with torch.autocast(z0.device.type, enabled=False):
        z = F.normalize(torch.cat([z0, z1]).float(), dim=1)  # (2n, d)
        similarity = z @ z.T / temperature  # (2n, 2n)
        similarity = similarity.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), float("-inf"))
        partner = torch.arange(len(z), device=z.device).roll(len(z0))  # (2n,)
        return F.cross_entropy(similarity, partner)
