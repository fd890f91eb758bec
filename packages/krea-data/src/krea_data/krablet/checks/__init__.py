"""A look over a whole krablet: what breaks a rule, what slows a server down."""

__all__: list[str] = []
