"""One training loop for every stage of a Krea 2 model."""

__all__: list[str] = []
