"""Exports a trained model to ONNX and torch.export, and compares both with it on images before it says done.

uv run jobs/export.py --checkpoint RUN --out DIR [--data URI]
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from jobs import command, training
from pipeline.config.choices import TestViews
from pipeline.core.errors import check_installed
from pipeline.ingestion.prepare import prepare_dataset
from pipeline.storage import files

_RANDOM_BATCHES = (1, 2, 7, 64)


@dataclass(frozen=True)
class Args:
    """Flags."""

    checkpoint: Annotated[str, command.option("a finished run, or RUN/checkpoints/STEP", "URI")]
    out: Annotated[str | None, command.option("where the files go", "URI", "RUN/export")] = None
    data: Annotated[
        str | None, command.option("images to compare on: raw ones or a data set", "URI", "random pixels")
    ] = None
    split: Annotated[str, command.option("of the data set", "NAME", "val")] = "val"
    views: Annotated[TestViews, command.option("of each image, in the exported network", "NAME", "none")] = "none"
    layout: Annotated[str, command.option("of raw data", "NAME", "auto")] = "auto"


def main(args: Args) -> None:
    """Exports, compares, and only then puts the files where they belong."""
    from pipeline.evaluation import export
    from pipeline.loader.decode import best_decoder
    from pipeline.loader.transform import evaluation_transform
    from pipeline.models import load as trained

    check_installed("export", "onnx", "onnxscript", "onnxruntime")
    uri = files.absolute(args.checkpoint).rstrip("/")
    model = trained.find_model(uri)
    out = files.absolute(args.out) if args.out else files.join(uri, "export")
    view = evaluation_transform(model.recipe, best_decoder())
    with tempfile.TemporaryDirectory() as folder, command.Display() as display:
        batches = _random(view.size_px) if args.data is None else _stored(args, model, view, display)
        display("export", 0, 1, "ONNX and torch.export")
        forms = export.export(model, view.size_px, args.views, Path(folder))
        display("export", 1, 1)
        lines = export.compare(model, args.views, forms, batches)
        for name in (export.ONNX_NAME, export.TORCH_NAME, export.META_NAME):
            files.write_bytes(files.join(out, name), (Path(folder) / name).read_bytes())
    what = f"{args.split} images" if args.data else "images of random pixels"
    command.print_table(
        f"\n{model.name}: exported",
        [
            *((line.form, f"{_right(line)}the same class for {line.same_class:,} of {line.images:,} {what}, logits "
               f"within {line.largest_difference:.2g}") for line in lines),
            ("input", f"uint8 [N, 3, {view.size_px}, {view.size_px}], RGB, as decoded; test views: {args.views}"),
            ("ONNX", files.join(out, export.ONNX_NAME)),
            ("torch", files.join(out, export.TORCH_NAME)),
            ("how to feed it", files.join(out, export.META_NAME)),
        ],
    )  # fmt: skip


def _right(line: Any) -> str:
    if line.correct is None:
        return ""
    return f"top-1 {line.correct_exported:,} right, the network {line.correct:,}; "


def _random(size_px: int) -> Iterator[tuple[Any, Any]]:
    generator = np.random.default_rng(0)
    for count in _RANDOM_BATCHES:
        yield generator.integers(0, 256, (count, 3, size_px, size_px), dtype=np.uint8), None


def _stored(args: Args, model: Any, view: Any, display: command.Display) -> Iterator[tuple[Any, Any]]:
    from pipeline.evaluation import predictions
    from pipeline.loader.local import local_batches
    from pipeline.loader.samplers import EvaluationSampler
    from pipeline.models import load as trained

    dataset = prepare_dataset(args.data, layout=args.layout, progress=display)
    data = training.describe_dataset(dataset)
    trained.check_classes(model, data.classes)
    split = data.split(args.split)
    units = EvaluationSampler(split.rows, predictions.UNIT_ROWS)
    for batch in local_batches(dataset, split, units, view):
        yield np.ascontiguousarray(batch.images.numpy()), batch.labels.numpy()
        display("compare", batch.index + 1, len(units))


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
