"""Everything public, loaded at once; `import xweights` loads each name at its first use."""

import xweights
from xweights import *  # noqa: F403 - all that is in __all__

__all__ = []
__all__ += xweights.__all__
