"""`python -m krea_model.ablations`: print the parameters of every variant, for the released size and for `base`."""

import sys

from krea_model.ablations.variants import table
from krea_model.configs import base, k2

__all__ = ["main"]


def main() -> None:
    """Two tables to standard output."""
    for name, config in (("k2", k2()), ("base", base())):
        sys.stdout.write(f"{name}\n\n{table(config)}\n")


if __name__ == "__main__":
    main()
