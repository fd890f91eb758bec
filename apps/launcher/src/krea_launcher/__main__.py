"""`python -m krea_launcher` is `krea-launch`."""

from krea_curator.interrupt import at_once

__all__ = ["main"]


def main() -> None:
    """Start the command line."""
    with at_once():
        from krea_launcher.cli import app
    app()


if __name__ == "__main__":
    main()
