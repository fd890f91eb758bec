"""`python -m krea_curator` is `krea-curate`."""

from krea_curator.interrupt import at_once

__all__ = ["main"]


def main() -> None:
    """Start the command line."""
    with at_once():
        from krea_curator.cli import app
    app()


if __name__ == "__main__":
    main()
