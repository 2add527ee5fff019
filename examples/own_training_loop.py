"""Trains with a loop of your own: exact batches from `Loader`, everything else plain PyTorch.

uv run jobs/ingest.py --source photos --out data/photos
uv run examples/own_training_loop.py data/photos
"""

import sys
from typing import Any

import torch
import torchvision
from torch import nn

from pipeline import Loader


def main(data: str, epochs: int = 5, **changes: Any) -> float:
    """Trains a ResNet-18 and returns its accuracy. changes: fields of the recipe, such as global_batch_size=32."""
    train = Loader(data, "imagenette-5", **changes)
    val = Loader(data, "imagenette-5", split="val", **changes)
    net = torchvision.models.resnet18(num_classes=len(train.classes))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)

    for epoch in range(epochs):
        net.train()
        for batch in train:  # one epoch: each row once
            loss = nn.functional.cross_entropy(net(train.normalise(batch.images)), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        net.eval()
        right = 0
        with torch.inference_mode():
            for batch in val:  # each row once, without augmentation
                right += int((net(val.normalise(batch.images)).argmax(1) == batch.labels).sum())
        accuracy = right / val.num_rows
        print(f"epoch {epoch}: top-1 {accuracy:.1%} of {val.num_rows}")
    return accuracy


if __name__ == "__main__":
    main(sys.argv[1])
