"""A funnel in a process of its own: python funnels.py ARGUMENTS (as JSON). Prints its address when it is ready."""

import json
import sys
from typing import Any

from krea_data.krablet.funnels.lane import Limits
from krea_data.krablet.funnels.process import run_funnel


def main(dsns: list[str], address: str, spool: str | None = None, limits: dict[str, Any] | None = None) -> None:
    def ready(address: str) -> None:
        print(address, flush=True)  # noqa: T201 - the test reads it

    run_funnel(dsns, address, spool=spool, limits=Limits(**(limits or {})), ready=ready)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
