"""`python -m krea_curator` is `krea-curate`."""

from krea_curator.cli import app

__all__: list[str] = []

if __name__ == "__main__":
    app()
