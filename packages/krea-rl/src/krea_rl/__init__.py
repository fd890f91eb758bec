"""Preference optimisation and multi-reward RL for flow models."""

__all__: list[str] = []
