"""Hyperparameter search: trials on a held-out part of train, and the page that compares them.

A recipe and ranges of its fields come in. The best recipe and a report go out, as files and as a `SearchResult`. The
door is `__all__`.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.training.search.run import SearchResult, search
    from pipeline.training.search.settings import SearchSettings
    from pipeline.training.search.space import Choice, Range, parse_space

__all__ = ["Choice", "Range", "SearchResult", "SearchSettings", "parse_space", "search"]
__getattr__ = lazy(
    __name__,
    {"run": ("SearchResult", "search"), "settings": ("SearchSettings",), "space": ("Choice", "Range", "parse_space")},
)
