"""`python -m krea_sampler` is `krea-sample`."""

from krea_sampler.cli import app

__all__: list[str] = []

if __name__ == "__main__":
    app()
