"""Batches that are on the device before the training loop asks for them."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.loader.batch import Batch

NUM_AHEAD = 2
"""Batches that are made and copied ahead of the one that is trained on."""

Source = Callable[[Callable[[], bool]], Generator[Batch]]


def copied_ahead(source: Source, device: torch.device, num_ahead: int = NUM_AHEAD) -> Generator[Batch]:
    """Yields the batches of `source` in their order, taken by a thread up to `num_ahead` before they are asked for.

    On a GPU the thread copies them, too: into a ring of pinned buffers, and from there on a stream of its own.
    `Batch.to` has the training's stream wait for the copy, not the host. Memory, in batches of the largest size: pinned
    `num_ahead`, which are reused once their copy is complete; on the device `num_ahead`, and those of the steps that
    the host has launched and the device hasn't done. On a CPU nothing is copied.

    source: makes the iterator in the thread, which closes it, too; called with a function that says whether the
    consumer has closed, so that a wait for the next batch can end. What it raises is raised here.
    """
    if num_ahead < 1:
        raise ValueError(f"num_ahead={num_ahead} must be 1 or more")
    ahead = _Ahead(source, device, num_ahead)
    try:
        yield from ahead.batches()
    finally:
        ahead.close()


class _Ahead:
    """The thread that takes batches ahead of the consumer, and the queue between them."""

    def __init__(self, source: Source, device: torch.device, num_ahead: int) -> None:
        self._source, self._device, self._num_ahead = source, device, num_ahead
        if device.type == "cuda" and device.index is None:  # the consumer's current device isn't the thread's
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._free = threading.Semaphore(num_ahead)  # batches that may still be taken
        self._ready: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="copy-ahead")
        self._thread.start()

    def batches(self) -> Iterator[Batch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._free.release()
            yield item

    def close(self) -> None:
        """Ends the thread, also before the source's end."""
        self._closed.set()
        self._free.release()  # it may be waiting for room
        self._thread.join(timeout=30)

    def _work(self) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # a thread starts on the first GPU, and pins memory there
            copy = _Copies(self._device, self._num_ahead) if self._device.type == "cuda" else None
            with closing(self._source(self._closed.is_set)) as batches:
                while self._free.acquire() and not self._closed.is_set():
                    batch = next(batches, None)
                    if batch is None:
                        break
                    self._ready.put(batch if copy is None else copy(batch))
            self._ready.put(None)
        except BaseException as error:  # raised again in the consumer's thread
            self._ready.put(error)


class _Copies:
    """Copies batches to a GPU through a ring of pinned buffers, on a stream of its own. Used by one thread."""

    def __init__(self, device: torch.device, num_buffers: int) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [_Buffer() for _ in range(num_buffers)]
        self._count = 0

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch on the device; its `ready` is the event after which it is there."""
        buffer = self._buffers[self._count % len(self._buffers)]
        self._count += 1
        pixels, labels = buffer.hold(batch)
        with torch.cuda.stream(self._stream):
            # As [N, S, S, 3], the order in memory: the result is channels_last.
            images = pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
            targets = labels.to(self._device, non_blocking=True)
            buffer.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            buffer.copied.record(self._stream)
        return replace(batch, images=images, labels=targets, ready=buffer.copied)


class _Buffer:
    """Pinned memory for one batch; grows to the largest one it has held."""

    def __init__(self) -> None:
        self._pixels, self._labels = _pinned(0, torch.uint8), _pinned(0, torch.int64)
        self.copied: torch.cuda.Event | None = None

    def hold(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns pinned copies: pixels, uint8 [N, S, S, 3], and labels, int64 [N].

        Waits until the last batch that was held has left for the device.
        """
        if self.copied is not None:
            self.copied.synchronize()
        pixels = batch.images.permute(0, 2, 3, 1)
        if self._pixels.numel() < pixels.numel() or self._labels.numel() < len(batch.labels):
            self._pixels, self._labels = _pinned(pixels.numel(), torch.uint8), _pinned(len(batch.labels), torch.int64)
        held = self._pixels[: pixels.numel()].view(pixels.shape), self._labels[: len(batch.labels)]
        # By numpy, which takes one thread: torch would take those that compute.
        np.copyto(held[0].numpy(), pixels.numpy())
        np.copyto(held[1].numpy(), batch.labels.numpy())
        return held


def _pinned(count: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(count, dtype=dtype, pin_memory=True)
