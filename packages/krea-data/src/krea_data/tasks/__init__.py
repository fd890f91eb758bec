"""The tasks of curation: each looks at rows and says, with a number and a reason, what it thinks of them."""

from krea_data.tasks.caption import Caption
from krea_data.tasks.complexity import Complexity
from krea_data.tasks.decode import Decode
from krea_data.tasks.dedup import Dedup
from krea_data.tasks.flat import Flat
from krea_data.tasks.hash import Hash
from krea_data.tasks.licence import Licence

__all__ = ["Caption", "Complexity", "Decode", "Dedup", "Flat", "Hash", "Licence"]
