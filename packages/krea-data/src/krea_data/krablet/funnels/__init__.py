"""Funnel servers: writes of many clients become few large transactions, each stored exactly once."""

__all__: list[str] = []
