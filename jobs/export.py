"""Exports a trained model to ONNX and torch.export, and compares both files with the network before keeping them.

Examples:
    uv run jobs/export.py --checkpoint runs/digits
    uv run jobs/export.py --checkpoint runs/photos --out export --data data/photos --views flip
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from jobs.arguments.evaluation import CHECKPOINT_HELP
from jobs.arguments.source import RawArgs
from jobs.terminal import command
from jobs.terminal.training_result import describe_dataset
from pipeline.config.choices import TestViews
from pipeline.core.errors import check_installed
from pipeline.core.shares import share_text
from pipeline.ingestion.prepare import prepare_dataset
from pipeline.storage import files

if TYPE_CHECKING:
    from pipeline.evaluation.export import ExportCheck


@dataclass(frozen=True)
class Args:
    """Flags of the command."""

    checkpoint: Annotated[str, command.option(CHECKPOINT_HELP, "URI")]
    out: Annotated[str | None, command.option("folder for the files", "URI", "RUN/export")] = None
    data: Annotated[
        str | None, command.option("images to compare on: a data set or raw images", "URI", "random pixels")
    ] = None
    split: Annotated[str, command.option("split of the data set", "NAME", "val")] = "val"
    views: Annotated[TestViews, command.option("test views that the exported network averages", "NAME", "none")] = (
        "none"
    )
    raw: Annotated[RawArgs, command.group("data")] = field(default_factory=RawArgs)


def main(args: Args) -> None:
    """Exports a model and prints the comparison of each file with the network."""
    check_installed("export", "onnx", "onnxscript", "onnxruntime")
    with command.loading():
        from pipeline.evaluation.export import META_NAME, ONNX_NAME, TORCH_NAME, export_model
        from pipeline.loader.transform import evaluation_transform
        from pipeline.models.load import find_model

        model = find_model(files.absolute(args.checkpoint))
    out = files.absolute(args.out) if args.out else files.join(model.uri, "export")
    size_px = evaluation_transform(model.recipe, "libjpeg").size_px
    with command.Display() as display:
        dataset = None
        if args.data is not None:
            dataset = prepare_dataset(
                args.raw.source(args.data), max_quarantined=args.raw.max_quarantined, progress=display
            )
            describe_dataset(dataset)
        checks = export_model(model.uri, out, args.views, dataset, args.split, display)
    images = f"{args.split} images" if args.data else "images of random pixels"
    command.print_table(
        f"\n{model.name}: exported",
        [
            *((check.form, _agreement(check, images)) for check in checks),
            ("input", f"uint8 [N, 3, {size_px}, {size_px}], RGB, as decoded; test views: {args.views}"),
            ("ONNX", files.join(out, ONNX_NAME)),
            ("torch", files.join(out, TORCH_NAME)),
            ("how to feed it", files.join(out, META_NAME)),
        ],
    )


def _agreement(check: "ExportCheck", images: str) -> str:
    text = f"the same class for {check.same_class:,} of {check.images:,} {images}, logits within "
    text += f"{check.largest_difference:.2g}"
    if check.correct is None:
        return text
    exported, network = share_text(check.correct_exported or 0, check.images), share_text(check.correct, check.images)
    return f"top-1 {exported}, the network {network}; {text}"


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
