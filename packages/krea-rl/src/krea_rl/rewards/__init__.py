"""Rewards and how they are combined."""

from krea_rl.rewards.combine import Rewards, Term
from krea_rl.rewards.text import TextReward

__all__ = ["Rewards", "Term", "TextReward"]
