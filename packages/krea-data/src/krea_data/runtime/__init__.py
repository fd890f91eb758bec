"""How a worker runs its tasks: reading ahead, leases that last as long as the work, processes that may be killed."""

from krea_data.runtime.limits import Limits

__all__ = ["Limits"]
