"""The Krea 2 diffusion transformer: load, sample, adapt."""

__all__: list[str] = []
