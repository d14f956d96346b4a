"""Search engines over plan spaces; called, the package is ``planner.search.call.search``."""

import sys
from types import ModuleType
from typing import Any


class _Search(ModuleType):
    """A package that can be called, because what it holds and what one does with it have one name."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """See ``planner.search.call.search``."""
        from planner.search.call import search

        return search(*arguments, **settings)


sys.modules[__name__].__class__ = _Search
