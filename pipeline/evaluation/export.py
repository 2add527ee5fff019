"""A trained network for other programs: ONNX and torch.export, compared with the network itself before it says done.

What is exported takes pixels as they are decoded, uint8 [N, 3, S, S] for any N, and returns logits float32 [N, C]; it
normalises them itself, and means over the test views.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.config.choices import TestViews
from pipeline.core.errors import ExactnessError
from pipeline.evaluation.inference import view_logits
from pipeline.models.batch_transforms import Normalise
from pipeline.models.load import TrainedModel, load_net

ONNX_NAME, TORCH_NAME, META_NAME = "model.onnx", "model.pt2", "model.json"
_OPSET = 20
_TOLERANCE = 1e-3  # of logits, whose size is about 10: other kernels add up in another order
_SAME = 0.999  # share of images with the same best class: two may be as good as equal
Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Run = Callable[[Pixels], Logits]


class Exported(nn.Module):
    """The network with what goes before it."""

    def __init__(self, model: TrainedModel, views: TestViews) -> None:
        super().__init__()
        self.net, self._views = load_net(model).to(memory_format=torch.contiguous_format), views
        self.normalise = Normalise(model.recipe.pixel_mean, model.recipe.pixel_std)

    def forward(self, images: Tensor) -> Tensor:
        """images: uint8 [N, 3, S, S]. Returns logits float32 [N, C]."""
        return view_logits(self.net, self.normalise(images), self._views)


@dataclass(frozen=True)
class Comparison:
    """An exported form against the network, on the same images: top-1 of both, rows with the same class, and the
    largest difference of a logit."""

    form: str
    images: int
    same_class: int
    largest_difference: float
    correct: int | None = None
    correct_exported: int | None = None


def export(model: TrainedModel, size_px: int, views: TestViews, folder: Path) -> dict[str, Run]:
    """Writes both forms and `model.json` into a local folder. Returns a function for each that runs it from the file.

    model.json: classes, size, how to get there (resize and cut), views, SHA-256 of the weights.
    """
    net = Exported(model, views).eval().requires_grad_(False)
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
        "recipe": asdict(model.recipe),
    }
    (folder / META_NAME).write_text(json.dumps(values, indent=1) + "\n")
    return {"onnx": onnx_runner(folder / ONNX_NAME), "torch.export": torch_runner(folder / TORCH_NAME)}


def onnx_runner(path: Path) -> Run:
    """Returns what runs a file in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Pixels) -> Logits:
        logits: Logits = session.run(["logits"], {"images": images})[0]
        return logits

    return run


def torch_runner(path: Path) -> Run:
    """Returns what runs a program of torch.export."""
    net = torch.export.load(path).module()

    def run(images: Pixels) -> Logits:
        with torch.inference_mode():
            logits: Tensor = net(torch.from_numpy(images))
        return logits.numpy()

    return run


def compare(
    model: TrainedModel,
    views: TestViews,
    forms: dict[str, Run],
    batches: Iterator[tuple[Pixels, npt.NDArray[np.int64] | None]],
) -> list[Comparison]:
    """batches: uint8 [N, 3, S, S] and labels int64 [N], or None. Raises ExactnessError unless each form says of every
    image what the network says, but for rounding.
    """
    net = Exported(model, views).eval()
    found = {name: [0, 0, 0.0, 0, 0] for name in forms}
    labelled = False
    for images, labels in batches:
        with torch.inference_mode():
            own = net(torch.from_numpy(images)).numpy()
        for name, run in forms.items():
            other, line = run(images), found[name]
            line[0] += len(images)
            line[1] += int((own.argmax(axis=1) == other.argmax(axis=1)).sum())
            line[2] = max(line[2], float(np.abs(own - other).max()))
            if labels is not None:
                labelled = True
                line[3] += int((own.argmax(axis=1) == labels).sum())
                line[4] += int((other.argmax(axis=1) == labels).sum())
    compared = [
        Comparison(name, int(n), int(same), worst, *((int(a), int(b)) if labelled else ()))
        for name, (n, same, worst, a, b) in found.items()
    ]
    for each in compared:
        if each.largest_difference > _TOLERANCE or each.same_class < each.images * _SAME:
            raise ExactnessError(
                f"{each.form}: differs from the network on {each.images:,} images: another class for "
                f"{each.images - each.same_class:,}, logits by up to {each.largest_difference:.3g}; don't use it"
            )
    return compared
