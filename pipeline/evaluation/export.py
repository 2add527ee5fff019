"""Exports a trained network to ONNX and torch.export, and compares both files with the network before it keeps them.

The exported network takes pixels as they are decoded, uint8 [N, 3, S, S] for any N, and returns logits, float32 [N, C].
It normalises the pixels itself, and takes the mean over the test views.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.config.choices import TestViews
from pipeline.config.recipe_json import recipe_to_json
from pipeline.core.errors import ExactnessError, check_installed
from pipeline.core.progress import Progress, silent
from pipeline.core.shares import counted
from pipeline.dataset import manifest
from pipeline.evaluation.inference import view_logits
from pipeline.evaluation.inputs import Data, StrPath, absolute_uri, dataset_uri
from pipeline.evaluation.predictions import UNIT_ROWS
from pipeline.loader.decode import best_decoder
from pipeline.loader.normalise import Normalise
from pipeline.loader.samplers import EvaluationSampler
from pipeline.loader.streaming.threads import local_batches
from pipeline.loader.transform import Transform, evaluation_transform
from pipeline.models.load import TrainedModel, check_classes, find_model, load_net
from pipeline.storage import files
from pipeline.storage.places import check_folder

ONNX_NAME, TORCH_NAME, META_NAME = "model.onnx", "model.pt2", "model.json"
_OPSET = 20  # of ONNX
_TOLERANCE = 1e-3  # of logits, which are about 10 in size: other kernels add in another order
_MIN_SAME_CLASS = 0.999  # share of images with the same best class: two logits may differ by less than the tolerance
_RANDOM_BATCHES = (1, 2, 7, 64)  # sizes: the files must take any number of images
Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Run = Callable[[Pixels], Logits]


@dataclass
class ExportCheck:
    """The comparison of an exported file with the network on the same images.

    form: "onnx" or "torch.export". images: how many were compared. same_class: images with the same best class.
    largest_difference: of any logit. correct, correct_exported: images that the network and the file classify
    correctly, None for images without labels.
    """

    form: str
    images: int = 0
    same_class: int = 0
    largest_difference: float = 0.0
    correct: int | None = None
    correct_exported: int | None = None

    def add(self, network: Logits, exported: Logits, labels: Labels | None) -> None:
        """Adds a batch. network, exported: logits, float32 [N, C], of the same images; labels: int64 [N] or None."""
        best, other = network.argmax(axis=1), exported.argmax(axis=1)
        self.images += len(network)
        self.same_class += int((best == other).sum())
        self.largest_difference = max(self.largest_difference, float(np.abs(network - exported).max()))
        if labels is not None:
            self.correct = (self.correct or 0) + int((best == labels).sum())
            self.correct_exported = (self.correct_exported or 0) + int((other == labels).sum())

    def raise_if_different(self) -> None:
        """Raises ExactnessError unless the logits agree within the tolerance, and the best classes almost always."""
        if self.largest_difference > _TOLERANCE or self.same_class < self.images * _MIN_SAME_CLASS:
            raise ExactnessError(
                f"{self.form}: differs from the network on {counted(self.images, 'image')}: another class for "
                f"{self.images - self.same_class:,}, logits by up to {self.largest_difference:.3g}; don't use it"
            )


def export_model(
    run: StrPath,
    out: StrPath | None = None,
    views: TestViews = "none",
    data: Data | None = None,
    split: str = "val",
    progress: Progress = silent,
) -> list[ExportCheck]:
    """Exports a trained model to ONNX and torch.export, and returns the comparison of each file with the network.

        export_model("runs/digits", "export/", data="data/digits")

    run: a finished run, or RUN/checkpoints/STEP. out: the folder that gets `model.onnx`, `model.pt2` and `model.json`;
    by default RUN/export. views: test views that the exported network averages over. data, split: a data set, or raw
    images, to compare on; by default random pixels. Needs the extra `evaluation`. Raises ExactnessError, and writes
    nothing, if a file differs from the network.
    """
    check_installed("export", "onnx", "onnxscript", "onnxruntime")
    model = find_model(absolute_uri(run))
    folder = files.join(model.uri, "export") if out is None else absolute_uri(out)
    check_folder(folder, "out")
    view = evaluation_transform(model.recipe, best_decoder())
    if data is None:
        batches = _random_batches(view.size_px)
    else:
        batches = _stored_batches(dataset_uri(data, progress, split), split, model, view, progress)
    with tempfile.TemporaryDirectory() as temporary:
        progress("export", 0, 1, "ONNX and torch.export")
        forms = write_exports(model, view.size_px, views, Path(temporary))
        progress("export", 1, 1)
        checks = compare_exports(model, views, forms, batches)
        for name in (ONNX_NAME, TORCH_NAME, META_NAME):
            files.write_bytes(files.join(folder, name), (Path(temporary) / name).read_bytes())
    return checks


class ExportedNet(nn.Module):
    """The network that is exported: normalisation, the trained network, and the mean over the test views."""

    def __init__(self, model: TrainedModel, views: TestViews) -> None:
        super().__init__()
        self.net, self._views = load_net(model).to(memory_format=torch.contiguous_format), views
        self.normalise = Normalise(model.recipe.pixel_mean, model.recipe.pixel_std)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits, float32 [N, C]. images: uint8 [N, 3, S, S]."""
        return view_logits(self.net, self.normalise(images), self._views)


def write_exports(model: TrainedModel, size_px: int, views: TestViews, folder: Path) -> dict[str, Run]:
    """Writes `model.onnx`, `model.pt2` and `model.json` into a local folder, and returns a function to run each form.

    The functions run the files, not the network. model.json: classes, shapes, how to resize images, the SHA-256 of the
    weights and the recipe.
    """
    net = ExportedNet(model, views).eval().requires_grad_(False)
    # Two images, because torch.export would take a batch of one for a constant.
    example = torch.zeros(2, 3, size_px, size_px, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(net, (example,), dynamic_shapes={"images": {0: batch}})
    torch.export.save(program, folder / TORCH_NAME)
    onnx = torch.onnx.export(
        program, input_names=["images"], output_names=["logits"], opset_version=_OPSET, dynamo=True, verbose=False
    )
    assert onnx is not None
    onnx.save(folder / ONNX_NAME, include_initializers=True)
    values = {
        "classes": list(model.classes),
        "input": {"name": "images", "dtype": "uint8", "shape": ["N", 3, size_px, size_px], "colours": "RGB"},
        "output": {"name": "logits", "dtype": "float32", "shape": ["N", len(model.classes)]},
        "resize_shorter_side_px": model.recipe.evaluate_resize_px,
        "views": views,
        "weights_sha256": model.sha256,
        "recipe": recipe_to_json(model.recipe),
    }
    (folder / META_NAME).write_text(json.dumps(values, indent=1) + "\n")
    return {"onnx": onnx_runner(folder / ONNX_NAME), "torch.export": torch_runner(folder / TORCH_NAME)}


def onnx_runner(path: Path) -> Run:
    """Returns a function that runs an ONNX file in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Pixels) -> Logits:
        logits: Logits = session.run(["logits"], {"images": images})[0]
        return logits

    return run


def torch_runner(path: Path) -> Run:
    """Returns a function that runs a file of torch.export, on the CPU."""
    net = torch.export.load(path).module()

    def run(images: Pixels) -> Logits:
        with torch.inference_mode():
            logits: Tensor = net(torch.from_numpy(images))
        return logits.numpy()

    return run


def compare_exports(
    model: TrainedModel, views: TestViews, forms: dict[str, Run], batches: Iterator[tuple[Pixels, Labels | None]]
) -> list[ExportCheck]:
    """Returns the comparison of each form with the network. Raises ExactnessError if one differs.

    batches: uint8 [N, 3, S, S] and labels int64 [N], or None.
    """
    net = ExportedNet(model, views).eval()
    checks = [ExportCheck(form) for form in forms]
    for images, labels in batches:
        with torch.inference_mode():
            network = net(torch.from_numpy(images)).numpy()
        for check, run in zip(checks, forms.values(), strict=True):
            check.add(network, run(images), labels)
    for check in checks:
        check.raise_if_different()
    return checks


def _random_batches(size_px: int) -> Iterator[tuple[Pixels, Labels | None]]:
    generator = np.random.default_rng(0)
    for count in _RANDOM_BATCHES:
        yield generator.integers(0, 256, (count, 3, size_px, size_px), dtype=np.uint8), None


def _stored_batches(
    dataset: str, name: str, model: TrainedModel, view: Transform, progress: Progress
) -> Iterator[tuple[Pixels, Labels | None]]:
    data = manifest.load(dataset)
    check_classes(model, data.classes)
    split = data.split(name)
    units = EvaluationSampler(split.rows, UNIT_ROWS)
    for batch in local_batches(dataset, split, units, view):
        yield np.ascontiguousarray(batch.images.numpy()), batch.labels.numpy()
        progress("compare", batch.index + 1, len(units))
