"""`python -m krea_sampler` is `krea-sample`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Start the command line; Ctrl-C while it is being imported ends without a traceback."""
    try:
        from krea_sampler.cli import app
    except KeyboardInterrupt:
        sys.exit(130)
    app()


if __name__ == "__main__":
    main()
