"""`mlp`: a multi-layer perceptron on the pixels, from zero: flatten, then ``depth`` × [linear, ReLU, dropout], then the head.

The oldest network that learns its features (Rumelhart, Hinton and Williams 1986; ReLU: Nair and Hinton 2010; dropout:
Srivastava et al. 2014). It knows nothing of neighbouring pixels: use it as the baseline that `cnn` has to beat.
"""

from __future__ import annotations

from torch import nn

from frostline.errors import ModelError
from frostline.models.cnn import preprocess
from frostline.models.head import ImageNetwork, blocks, build_head, head
from frostline.models.net import Net

__all__ = ["blocks", "build_mlp", "head", "preprocess"]


def build_mlp(net: Net, *, channels: int = 3, size: int = 28) -> ImageNetwork:
    """For images of ``channels`` × ``size`` × ``size``. Raises ModelError where ``net.pool`` is set: no positions are left."""
    if net.pool is not None:
        raise ModelError(f"mlp: model.pool is {net.pool!r}, but an mlp has no positions to pool; leave model.pool out")
    features = channels * size * size
    made: list[nn.Module] = [nn.Flatten()]
    for _ in range(net.depth):
        made.append(nn.Sequential(nn.Linear(features, net.width), nn.ReLU(), nn.Dropout(net.dropout)))
        features = net.width
    return ImageNetwork(nn.Sequential(*made), build_head(net.head, features, net.outputs))
