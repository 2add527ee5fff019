"""Trains with Hugging Face Accelerate: exact batches from `Loader`, the rest as Accelerate does it.

uv run --group frameworks accelerate launch examples/accelerate_loop.py data/photos
"""

import sys
from typing import Any

import torch
import torchvision
from accelerate import Accelerator
from torch import nn

from pipeline import Loader


def main(data: str, epochs: int = 2, checkpoint: str = "", **changes: Any) -> float:
    """Trains a ResNet-18 and returns the last loss.

    checkpoint: a folder for Accelerate's states, which hold the loader's position, too. changes: such as size_px=64.
    """
    accelerator = Accelerator()
    # The loader deals the batches to the processes, so it isn't given to `prepare`, which would do so again.
    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    train = Loader(data, device=accelerator.device, **place, **changes)
    net = torchvision.models.resnet18(num_classes=len(train.classes))
    net, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9))
    normalise = train.normalise.to(accelerator.device)
    accelerator.register_for_checkpointing(train)

    while train.epoch < epochs:
        for batch in train:  # one epoch: each row once
            loss = nn.functional.cross_entropy(net(normalise(batch.images)), batch.labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        accelerator.print(f"epoch {train.epoch - 1}: loss {loss.item():.3f}")
        if checkpoint:
            accelerator.save_state(checkpoint)
    return float(loss.item())


if __name__ == "__main__":
    main(sys.argv[1])
