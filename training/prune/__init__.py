"""Pruning of channels: what ranks them, how many each layer keeps, removal at once or after setting to zero.

Groups of channels that go together are found in training/channels.py; single weights are pruned in training/masks.py.
"""

from hce_engine.training.channels import ChannelGroup, channel_groups, excluded, pruning_scope

from .allocation import ALLOCATIONS, choose, prune_to_ratio
from .criteria import CRITERIA, l1_scores, relative, scores_of
from .removal import prune
from .schedule import Pruning
from .soft import remove_zero_filters, zero_filters

__all__ = [
    "ALLOCATIONS", "CRITERIA", "ChannelGroup", "Pruning", "channel_groups", "choose", "excluded", "l1_scores", "prune",
    "prune_to_ratio", "pruning_scope", "relative", "remove_zero_filters", "scores_of", "zero_filters",
]
