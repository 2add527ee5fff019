"""Fine-tunes a network with plain torchvision, to compare `image-pipeline train` with: same images, weights, epochs.

What a tutorial does: ImageFolder, RandomResizedCrop and flips, AdamW with a cosine, evaluation on centre crops.

Examples:
uv run jobs/bench/finetune.py --images photos --weights W.safetensors --model timm:tf_efficientnet_lite0 --epochs 10
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from jobs.terminal import command


@dataclass(frozen=True)
class Args:
    """Images in train/CLASS/ and val/CLASS/, and the settings of a fine-tuning."""

    images: Annotated[str, command.option("folder with train/CLASS/ and val/CLASS/", "DIR")]
    model: Annotated[str, command.option("network, as recipes name it", "NAME", "resnet18")] = "resnet18"
    weights: Annotated[str | None, command.option("file of pretrained weights", "FILE", "none")] = None
    mean_and_std: Annotated[
        tuple[float, float], command.option("mean and deviation of the pixels", "X X", "ImageNet's")
    ] = (0.449, 0.226)
    image_size_px: Annotated[int, command.option("side of the images", "N", "128")] = 128
    epochs: Annotated[int, command.option("passes over the images", "N", "10")] = 10
    batch_size: Annotated[int, command.option("images in a step", "N", "16")] = 16
    learning_rate: Annotated[float, command.option("peak rate of AdamW", "RATE", "0.0005")] = 5e-4
    weight_decay: Annotated[float, command.option("decay of AdamW", "X", "0.05")] = 0.05
    label_smoothing: Annotated[float, command.option("share of a label", "X", "0.1")] = 0.1
    seed: Annotated[int, command.option("seed of torch", "N", "0")] = 0


def loaders(args: Args) -> tuple[Any, Any]:
    """Returns torchvision's loaders of the training and the validation images."""
    import torch
    from torchvision import datasets, transforms

    size, (mean, std) = args.image_size_px, args.mean_and_std
    last = [transforms.ToTensor(), transforms.Normalize([mean] * 3, [std] * 3)]
    train = transforms.Compose(
        [transforms.RandomResizedCrop(size, (0.35, 1.0)), transforms.RandomHorizontalFlip(), *last]
    )
    val = transforms.Compose([transforms.Resize(round(size * 8 / 7)), transforms.CenterCrop(size), *last])
    root = Path(args.images)
    return (
        torch.utils.data.DataLoader(
            datasets.ImageFolder(str(root / "train"), train), args.batch_size, shuffle=True, drop_last=True
        ),
        torch.utils.data.DataLoader(datasets.ImageFolder(str(root / "val"), val), 64),
    )


def fine_tune(args: Args) -> float:
    """Trains as a tutorial does and returns top-1 on the validation images, 0 to 1."""
    import torch
    from torch.nn.functional import cross_entropy

    from pipeline.models.factory import make_model
    from pipeline.models.pretrained.fit import load_pretrained

    torch.manual_seed(args.seed)
    train, val = loaders(args)
    net = make_model(args.model, len(train.dataset.classes), args.image_size_px)
    if args.weights:
        load_pretrained(net, args.weights)
    optimizer = torch.optim.AdamW(net.parameters(), args.learning_rate, weight_decay=args.weight_decay)
    steps = args.epochs * len(train)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (0.1 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    for _ in range(args.epochs):
        net.train()
        for images, labels in train:
            loss: Any = cross_entropy(net(images), labels, label_smoothing=args.label_smoothing)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    net.eval()
    with torch.no_grad():
        right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in val)
    return right / len(val.dataset)


def main(args: Args) -> None:
    """Prints the accuracy."""
    command.console.print(f"top-1 {fine_tune(args):.4f} with plain torchvision")


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
