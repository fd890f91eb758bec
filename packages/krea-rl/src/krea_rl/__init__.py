"""Preference optimisation and multi-reward RL for flow models."""

from krea_rl.advantage import advantages, gdpo
from krea_rl.grpo import GRPO, Studio, Update, update
from krea_rl.interfaces import Reward
from krea_rl.nft import NFT, nft_update
from krea_rl.pairs import Member, Pair, PairBatches, PairSet
from krea_rl.preference import Preference, PreferenceObjective, stpo
from krea_rl.prompts import Pool, PromptPool
from krea_rl.rewards import Rewards, Term
from krea_rl.rollout import Rollout, Sampler, rollout

__all__ = [
    "GRPO",
    "NFT",
    "Member",
    "Pair",
    "PairBatches",
    "PairSet",
    "Pool",
    "Preference",
    "PreferenceObjective",
    "PromptPool",
    "Reward",
    "Rewards",
    "Rollout",
    "Sampler",
    "Studio",
    "Term",
    "Update",
    "advantages",
    "gdpo",
    "nft_update",
    "rollout",
    "stpo",
    "update",
]
