"""Structured pruning: groups of tied indices, their importance, a budget, and the rewrite."""

from .channels import PruneChannels
from .groups import Group, find_groups
from .inspection import GroupReport, inspect_groups
from .masking import PruningRecord, mask
from .recovery import Recover
from .rotation import RotateStreams

__all__ = [
    "Group",
    "GroupReport",
    "PruneChannels",
    "PruningRecord",
    "Recover",
    "RotateStreams",
    "find_groups",
    "inspect_groups",
    "mask",
]
