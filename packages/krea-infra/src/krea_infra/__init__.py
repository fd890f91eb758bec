"""Clusters for training and inference: select, launch, watch."""

__all__: list[str] = []
