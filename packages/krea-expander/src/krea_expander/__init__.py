"""Short wishes into detailed prompts."""

__all__: list[str] = []
