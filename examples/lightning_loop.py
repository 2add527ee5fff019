"""Trains with Lightning: exact batches from `Loader`, the rest as Lightning does it.

uv run --group frameworks examples/lightning_loop.py data/photos
"""

import sys
from typing import Any

import lightning
import torch
import torchvision
from torch import Tensor, nn

from pipeline import Loader
from pipeline.loader import Batch


class Classifier(lightning.LightningModule):
    """A ResNet-18 on batches of `Loader`; Lightning moves them to the device."""

    def __init__(self, train: Loader) -> None:
        super().__init__()
        self.normalise = train.normalise
        self.net = torchvision.models.resnet18(num_classes=len(train.classes))

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Returns the loss of a batch."""
        return nn.functional.cross_entropy(self.net(self.normalise(batch.images)), batch.labels)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Counts the batch's right answers."""
        right = (self.net(self.normalise(batch.images)).argmax(1) == batch.labels).float().mean()
        self.log("top1", right, batch_size=len(batch.labels), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns the optimiser."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(data: str, epochs: int = 2, folder: str = "lightning", **changes: Any) -> float:
    """Trains a ResNet-18 and returns its accuracy. folder: for Lightning's files. changes: such as size_px=64.

    Under several processes the loader asks torch.distributed, which Lightning has set up by then, for its part.
    """
    train, val = Loader(data, **changes), Loader(data, split="val", **changes)
    trainer = lightning.Trainer(max_epochs=epochs, default_root_dir=folder, logger=False)
    trainer.fit(Classifier(train), train, val)
    return float(trainer.callback_metrics["top1"])


if __name__ == "__main__":
    main(sys.argv[1])
