"""A krablet as a folder, and back."""

__all__: list[str] = []
