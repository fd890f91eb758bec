"""`python -m krea_sampler` is `krea-sample`."""

from krea_sampler.interrupt import at_once

__all__ = ["main"]


def main() -> None:
    """Start the command line."""
    with at_once():
        from krea_sampler.cli import app
    app()


if __name__ == "__main__":
    main()
