"""Evaluate, explain, compare, export and use trained models.

A trained model and a data set, or any images, come in. Predictions go out, with the metrics, the certificate, the
analyses and the pages that follow from them. The public functions are in `__all__`.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.evaluation.batch_predict.results import PredictResult
    from pipeline.evaluation.batch_predict.run import predict
    from pipeline.evaluation.certificate import Certificate
    from pipeline.evaluation.export import ExportCheck, export_model
    from pipeline.evaluation.inputs import EvaluateOptions, Workers
    from pipeline.evaluation.loaded_model import ImagePredictions, LoadedModel, load_model
    from pipeline.evaluation.workflow import compare, evaluate, verify

__all__ = [
    "Certificate",
    "EvaluateOptions",
    "ExportCheck",
    "ImagePredictions",
    "LoadedModel",
    "PredictResult",
    "Workers",
    "compare",
    "evaluate",
    "export_model",
    "load_model",
    "predict",
    "verify",
]
__getattr__ = lazy(
    __name__,
    {
        "batch_predict.results": ("PredictResult",),
        "batch_predict.run": ("predict",),
        "certificate": ("Certificate",),
        "export": ("ExportCheck", "export_model"),
        "inputs": ("EvaluateOptions", "Workers"),
        "loaded_model": ("ImagePredictions", "LoadedModel", "load_model"),
        "workflow": ("compare", "evaluate", "verify"),
    },
)
