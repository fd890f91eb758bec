"""A local page on which a person looks at rows and decides: `krea-curate review`."""

__all__: list[str] = []
