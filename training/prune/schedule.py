"""A recipe's pruning: from the keys of ``[s]`` to graphs that get smaller, or sparser, round by round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from hce_engine.graph import Graph
from hce_engine.ledger import ensemble_cost
from hce_engine.training import masks
from hce_engine.training.channels import pruning_scope
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.recipe import PruneSection

from .allocation import choose
from .criteria import COMPARABLE, relative, scores_of
from .removal import prune
from .soft import remove_zero_filters, zero_filters, zeros_last


@dataclass(frozen=True)
class Pruning:
    """How S is made smaller than ``original``.

    images, labels: scoring images, uint8 ``(N, C, H, W)`` and int64 ``(N,)``, on the device that gradients are taken on;
    only ``taylor`` and ``snip`` look at them.

    A round is ``graph = step(graph, target)``, training of ``module(graph)`` with ``after_epoch(target)``, ``to_graph``;
    after the last round ``finish(graph, target)`` gives the graph that trains on. Graphs are all that is carried from
    round to round, so a run resumes from any of them.
    """

    options: PruneSection
    original: Graph
    images: Tensor
    labels: Tensor

    def cost(self, graph: Graph) -> float:
        """The paper's FLOPs of ``graph``; of its non-zero weights only, where weights are pruned."""
        return masks.sparse_flops(graph) if self.options.granularity == "weight" else ensemble_cost(graph).flops_paper

    def step(self, graph: Graph, target: float) -> Graph:
        """``graph`` pruned to at most ``target``: smaller, or with more weights at zero; unchanged if pruning is soft.

        Raises InputError when it cannot get that small.
        """
        return graph if self.options.pruning == "soft" else self._pruned(graph, target)

    def module(self, graph: Graph) -> GraphModule:
        """``graph`` ready to train, its zero weights held where weights are pruned."""
        module = GraphModule(graph)
        return masks.hold_zeros(module) if self.options.granularity == "weight" else module

    def after_epoch(self, target: float) -> Callable[[nn.Module, int], None] | None:
        """What is done to the module after every epoch of a round, before it is scored: soft pruning sets to zero what a
        removal to ``target`` would take away. None if there is nothing to do."""
        if self.options.pruning == "hard":
            return None

        def zero(module: nn.Module, epoch: int) -> None:
            assert isinstance(module, GraphModule)
            zero_filters(module, self._choice(module.to_graph(), target))

        return zero

    def finish(self, graph: Graph, target: float) -> Graph:
        """``graph`` of cost at most ``target`` after the last round: soft pruning removes here what it has set to zero."""
        if self.options.pruning == "hard":
            return graph
        return self._pruned(remove_zero_filters(graph, pruning_scope(graph, self.options.scope)), target)

    def _pruned(self, graph: Graph, target: float) -> Graph:
        if self.cost(graph) <= target:
            return graph
        if self.options.granularity == "weight":
            scores = masks.scores_of(self.options.criterion, graph, self.images, self.labels)
            return masks.mask_to_ratio(graph, scores, target)
        return prune(graph, self._choice(graph, target))

    def _choice(self, graph: Graph, target: float) -> dict[str, np.ndarray]:
        options = self.options
        scores = scores_of(options.criterion, graph, self.images, self.labels)
        if options.allocation == "global" and options.criterion not in COMPARABLE:
            scores = relative(scores)
        if options.pruning == "soft":
            scores = zeros_last(scores)
        return choose(
            graph, pruning_scope(graph, options.scope), self.cost, target, scores=scores, allocation=options.allocation,
            stage_keep=options.stage_keep, multiple=options.multiple, original=self.original,
        )
