"""Trains with Composer: exact batches from `Loader`, the rest as Composer does it.

python examples/composer_loop.py data/photos

Composer 0.32 needs a torch older than this project's: install both in an environment of their own.
"""

import sys
from typing import Any

import torch
import torchvision
from composer import DataSpec, Trainer
from composer.models import ComposerModel
from torch import Tensor, nn

from pipeline import Loader
from pipeline.loader import Batch


class Classifier(ComposerModel):
    """A ResNet-18 on batches of `Loader`."""

    def __init__(self, train: Loader) -> None:
        super().__init__()
        self.normalise = train.normalise
        self.net = torchvision.models.resnet18(num_classes=len(train.classes))

    def forward(self, batch: Batch) -> Tensor:
        """Returns the logits of a batch."""
        return self.net(self.normalise(batch.images))

    def loss(self, outputs: Tensor, batch: Batch, *_: Any, **__: Any) -> Tensor:
        """Returns the loss of a batch."""
        return nn.functional.cross_entropy(outputs, batch.labels)


def main(data: str, epochs: int = 2, **changes: Any) -> float:
    """Trains a ResNet-18 and returns the last loss. changes: such as size_px=64."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train = Loader(data, device=device, **changes)
    model = Classifier(train)
    # Composer can neither count nor split batches that aren't tensors.
    batches = DataSpec(
        train,
        num_samples=train.num_rows,
        get_num_samples_in_batch=lambda batch: len(batch.labels),
        split_batch=lambda batch, _: [batch],
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = Trainer(
        model=model,
        train_dataloader=batches,
        max_duration=f"{epochs}ep",
        optimizers=optimizer,
        device_train_microbatch_size=train.recipe.global_batch_size,
        progress_bar=False,
    )
    trainer.fit()
    loss = trainer.state.loss
    return float(loss.item() if isinstance(loss, Tensor) else loss[0].item())


if __name__ == "__main__":
    main(sys.argv[1])
