"""Style references for a Krea 2 model."""

__all__: list[str] = []
