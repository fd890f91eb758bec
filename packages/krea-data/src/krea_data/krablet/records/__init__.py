"""Records: keyed values that many writers change at once, by the rules of their columns."""

__all__: list[str] = []
