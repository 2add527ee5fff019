"""Images in, a trained and evaluated classifier out: sources, ingest, order, loader, train, evaluate, promote.

    from pipeline import load_model, train

    result = train("photos", "runs/photos", "imagenette-5")
    print(result["val"]["top1"], load_model("runs/photos").predict("new/1.jpg").names)

The names in `__all__` are the interface; everything else is internal and may change with any version. They are imported
on first use: `import pipeline` loads neither torch nor Ray.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.config import Recipe, recipes
    from pipeline.dataset import open_dataset
    from pipeline.evaluation import evaluate, load_model, predict
    from pipeline.ingestion import ingest
    from pipeline.loader import Loader
    from pipeline.training import train

__all__ = ["Loader", "Recipe", "evaluate", "ingest", "load_model", "open_dataset", "predict", "recipes", "train"]
__getattr__ = lazy(
    __name__,
    {
        "config": ("Recipe", "recipes"),
        "dataset": ("open_dataset",),
        "evaluation": ("evaluate", "load_model", "predict"),
        "ingestion": ("ingest",),
        "loader": ("Loader",),
        "training": ("train",),
    },
)
