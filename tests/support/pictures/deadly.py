"""Images on which the process that checks them dies: they stand for a crash of a library written in C."""

import os
import signal
import time
from pathlib import Path

from pipeline.dataset.image_codec import Buffer
from pipeline.ingestion.image_check import Refused, Stored
from pipeline.ingestion.shard_task import ShardContext
from tests.support.pictures.rare_jpegs import with_segment

_COMMENT = 0xFE


def deadly(image: bytes, how: str) -> bytes:
    """Returns a JPEG on which `DeadlyContext` ends: "SIGSEGV", "SIGKILL", "hang", "exit", or "once FILE"."""
    return with_segment(image, _COMMENT, f"deadly {how};".encode())


class DeadlyContext(ShardContext):
    """A context in whose `check` the process dies on a deadly image."""

    def check(self, data: Buffer, key: str) -> Stored | Refused:
        """Returns the outcome of an image that isn't deadly."""
        _, found, rest = bytes(data).partition(b"deadly ")
        how = rest.partition(b";")[0].decode("latin-1") if found else ""
        if how.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[how])
        elif how == "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
            time.sleep(600)
        elif how == "exit":
            os._exit(3)
        elif how.startswith("once ") and not Path(how[5:]).exists():
            Path(how[5:]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().check(data, key)
