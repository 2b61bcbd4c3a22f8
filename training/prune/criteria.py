"""What ranks the channels of a group: the more, the better.

A channel that several layers make is scored by the sum over them, because it goes from all of them. Scores rank channels
of one group; only those of :data:`COMPARABLE` criteria mean the same in every layer, the others are to be divided by
their mean (:func:`relative`) before one ranking goes over all layers.

    l1        sum of |w| over the filter                                         Li et al., ICLR 2017
    l2        Euclidean norm of the filter                                       He et al., IJCAI 2018
    fpgm      sum of Euclidean distances to all filters of the layer: what is
              near the geometric median can be replaced by the others            He et al., CVPR 2019
    taylor    (dL/dg)^2 of a gate g = 1 on the channel, mean over batches        Molchanov et al., CVPR 2019
    bn-scale  |gamma| of the batch norms that scale the channel                  Liu et al., ICCV 2017
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from hce_engine.errors import InputError
from hce_engine.graph import Graph
from hce_engine.training.channels import PAD, ChannelGroup
from hce_engine.training.gradients import Gradients, gradients

Array = np.ndarray
Scores = Callable[[Graph, ChannelGroup], Array]
"""(graph, one of its groups) -> float64 (channels,)"""


def _filters(graph: Graph, name: str) -> Array:
    """Weights of a layer, one filter a row, float64 ``(OC, taps)``."""
    weight = graph[name].params["weight"].astype(np.float64)
    return weight.reshape(len(weight), -1)


def _summed(group: ChannelGroup, names: tuple[str, ...], of: Callable[[str], Array]) -> Array:
    """Sum over layers ``names`` of ``of(name)`` ``(OC,)``, brought to the group's channels."""
    scores = np.zeros(group.channels)
    for name in names:
        slots = group.slots[name]
        np.add.at(scores, slots[slots != PAD], of(name)[slots != PAD])
    return scores


def l1_scores(graph: Graph, group: ChannelGroup) -> Array:
    """Sum of |w| over the filters that make each channel, float64 (channels,)."""
    return _summed(group, group.producers, lambda name: np.abs(_filters(graph, name)).sum(axis=1))


def l2_scores(graph: Graph, group: ChannelGroup) -> Array:
    """Sum of the Euclidean norms of the filters that make each channel, float64 (channels,)."""
    return _summed(group, group.producers, lambda name: np.sqrt((_filters(graph, name) ** 2).sum(axis=1)))


def fpgm_scores(graph: Graph, group: ChannelGroup) -> Array:
    """Sum of distances from each channel's filter to all filters of its layer, summed over layers, float64 (channels,)."""

    def distances(name: str) -> Array:
        rows = _filters(graph, name)
        return np.array([np.sqrt(((rows - row) ** 2).sum(axis=1)).sum() for row in rows])

    return _summed(group, group.producers, distances)


def bn_scale_scores(graph: Graph, group: ChannelGroup) -> Array:
    """Sum of |gamma| over the batch norms that scale each channel, float64 (channels,).

    Raises InputError where no batch norm scales a channel.
    """
    scaled = _summed(group, group.norms, lambda name: np.ones(len(group.slots[name])))
    if not scaled.all():
        raise InputError(
            f"bn-scale of {group.name}", expected="a batch norm on every channel", got=f"{int((scaled == 0).sum())} without one",
            fix="use criterion l1, l2, fpgm or taylor",
        )
    return _summed(group, group.norms, lambda name: np.abs(graph[name].params["gamma"].astype(np.float64)))


def taylor_scores(graph: Graph, images: Tensor, labels: Tensor) -> Scores:
    """Scores by the squared first-order change of the loss when a channel goes, for groups of ``graph``.

    A factor g = 1 on what a batch norm yields has the derivative dL/dg = gamma * dL/dgamma + beta * dL/dbeta; g = 0 is the
    removal. Channels without a batch norm have the gate on their filters: the sum of w * dL/dw, bias included. Squares
    are averaged over batches and summed over the norms (or filters) of a channel.
    images, labels: as of :func:`gradients`.
    """
    batches = list(gradients(graph, images, labels))

    def gate(name: str, found: Gradients) -> Array:
        """Squared derivatives of the gates on a layer's channels, float64 ``(OC,)``."""
        params, total = graph[name].params, np.zeros(len(next(iter(graph[name].params.values()))))
        for key, gradient in found.of[name].items():
            total += (params[key] * gradient).reshape(len(gradient), -1).sum(axis=1)
        return total**2

    def mean(name: str) -> Array:
        return np.sum([found.share * gate(name, found) for found in batches], axis=0)

    def scores(graph: Graph, group: ChannelGroup) -> Array:
        normed = _summed(group, group.norms, lambda name: np.ones(len(group.slots[name]))) > 0
        return np.where(normed, _summed(group, group.norms, mean), _summed(group, group.producers, mean))

    return scores


def relative(scores: Scores) -> Scores:
    """``scores`` in units of their mean over the group, so that filters of large and small layers can be compared."""

    def divided(graph: Graph, group: ChannelGroup) -> Array:
        values = scores(graph, group)
        return values / (values.mean() or 1.0)

    return divided


WEIGHT_CRITERIA: dict[str, Scores] = {"l1": l1_scores, "l2": l2_scores, "fpgm": fpgm_scores, "bn-scale": bn_scale_scores}
CRITERIA = (*WEIGHT_CRITERIA, "taylor")
COMPARABLE = ("taylor", "bn-scale")


def scores_of(criterion: str, graph: Graph, images: Tensor, labels: Tensor) -> Scores:
    """The scores of the criterion of that name for groups of ``graph``; ``taylor`` looks at the images.

    Raises InputError for an unknown criterion.
    """
    if criterion == "taylor":
        return taylor_scores(graph, images, labels)
    if criterion not in WEIGHT_CRITERIA:
        raise InputError("pruning criterion", expected="one of " + ", ".join(CRITERIA), got=criterion, fix="choose one of them")
    return WEIGHT_CRITERIA[criterion]
