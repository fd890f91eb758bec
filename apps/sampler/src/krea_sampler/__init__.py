"""Draw pictures from prompts."""

__all__: list[str] = []
