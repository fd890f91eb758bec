"""Make a key for signed functions: python -m krea_data.krablet.pluck FILE. One that is there is kept."""

import sys
from pathlib import Path

from krea_data.krablet.pluck.keys import load_key, make_key

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("name the file of the key, such as ~/.config/krablet/pluck.key")
    try:
        load_key(make_key(Path(sys.argv[1])))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
