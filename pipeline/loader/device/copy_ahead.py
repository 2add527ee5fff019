"""Batches that are on the device before the training loop asks for them."""

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipeline.loader.batch import Batch
from pipeline.loader.device.send import send
from pipeline.loader.streaming.buffers import ImageBuffers
from pipeline.loader.streaming.plan import Source

NUM_AHEAD = 2
"""Batches that are made and copied ahead of the one that is trained on."""


def copied_ahead(source: Source, device: torch.device, num_ahead: int = NUM_AHEAD) -> Generator[Batch]:
    """Yields the batches of `source` in their order, taken by a thread up to `num_ahead` before they are asked for.

    On a GPU the thread copies them, too, on a stream of its own: from the pinned memory that threads have decoded them
    into, or else by way of such memory. `Batch.to` has the training's stream wait for the copy, not the host. Memory,
    in batches of the largest size: pinned `num_ahead` beside those that are being decoded, which are used again once
    their copy is complete; on the device `num_ahead`, and those of the steps that the host has launched and the device
    hasn't done. On a CPU nothing is copied.

    source: makes the iterator in the thread, which closes it, too. What it raises is raised here.
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
            copy = None
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # a thread starts on the first GPU, and pins memory there
                copy = _Copies(self._device, self._num_ahead)
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
    """Copies batches to a GPU from pinned memory, on a stream of its own. Used by one thread."""

    def __init__(self, device: torch.device, num_ahead: int) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers, self._num_ahead = ImageBuffers(pinned=True), num_ahead
        self._leaving: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch on the device; its `ready` is the event after which it is there."""
        if len(self._leaving) == self._num_ahead:
            self._leaving.popleft()[0].synchronize()
        pixels = self._pinned(batch)
        with torch.cuda.stream(self._stream):
            # As [N, S, S, 3], the order in memory: the result is channels_last.
            images = pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
            labels = send(batch.labels.numpy(), self._device)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        self._leaving.append((copied, pixels))  # its memory must not be used again before
        return replace(batch, images=images, labels=labels, ready=copied)

    def _pinned(self, batch: Batch) -> Tensor:
        """Returns the images, uint8 [N, S, S, 3], in pinned memory: where threads made them, or a copy."""
        pixels = batch.images.permute(0, 2, 3, 1)
        if pixels.is_pinned():
            return pixels
        held = self._buffers.take((*pixels.shape,))
        np.copyto(held, pixels.numpy())  # by numpy, which takes one thread: torch would take those that compute
        return from_dlpack(held)
