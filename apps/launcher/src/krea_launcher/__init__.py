"""Run a recipe: from the ten-minute quickstart to a cluster."""

__all__: list[str] = []
