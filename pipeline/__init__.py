"""Images in, a trained and evaluated classifier out: sources, ingest, order, loader, train, evaluate, promote.

    from pipeline import ingest, recipes, train

    data = ingest("photos", "data/photos")
    result = train(data.uri, "runs/photos", recipes["imagenette-5"])

The names in `__all__` are imported on first use: `import pipeline` loads neither torch nor Ray.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.config import Recipe, recipes
    from pipeline.dataset import open_dataset
    from pipeline.ingestion import ingest

__all__ = ["Recipe", "ingest", "open_dataset", "recipes"]
__getattr__ = lazy(__name__, {"config": ("Recipe", "recipes"), "dataset": ("open_dataset",), "ingestion": ("ingest",)})
