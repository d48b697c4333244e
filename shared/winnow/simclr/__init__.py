"""SimCLR in rounds: views, loss, encoder, training, embeddings, proxy and floors. Needs torch.

nt_xent(z0, z1, temperature)       the contrastive loss
Views(spec, size, seed)            augmentations, their parameters drawn per image
build(spec, seed)                  encoder f and head g
train_round(images, indices, ...)  one round; resumes in mid-round, bit for bit on the CPU
embed(encoder, images, indices)    h
fit_proxy(features, labels, ...)   the linear classifier on h
floors.*                           what costs nothing: colour histograms, an untrained encoder
"""

from winnow.simclr import floors
from winnow.simclr.embed import embed
from winnow.simclr.loss import nt_xent
from winnow.simclr.model import Images, SimclrModel, build, load_encoder, untrained_encoder
from winnow.simclr.proxy import Proxy, fit_proxy
from winnow.simclr.rig import Limits, Rig
from winnow.simclr.team import Team
from winnow.simclr.train import PROFILED_STEPS, Progress, TrainedRound, TrainingStopped, train_round
from winnow.simclr.views import Views, normalise

__all__ = [
    "PROFILED_STEPS",
    "Images",
    "Limits",
    "Progress",
    "Proxy",
    "Rig",
    "SimclrModel",
    "Team",
    "TrainedRound",
    "TrainingStopped",
    "Views",
    "build",
    "embed",
    "fit_proxy",
    "floors",
    "load_encoder",
    "normalise",
    "nt_xent",
    "train_round",
    "untrained_encoder",
]
