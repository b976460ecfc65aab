"""What visitors upload, and pictures that were made of it, are deleted after a while."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder


MAX_AGE = 3600.0  # seconds
MAX_TOTAL = 2 * 2**30  # bytes
INTERVAL = 10.0


@asynccontextmanager
async def deletes_uploads(_: Any) -> AsyncIterator[None]:
    """
    Delete old files as long as the server runs: the lifespan of its app. Gradio's own `delete_cache` ends silently when a
    file comes while it deletes others, and leaves all folders behind.
    """
    task = asyncio.create_task(_delete_again_and_again())
    try:
        yield
    finally:
        task.cancel()


async def _delete_again_and_again() -> None:
    while True:
        await asyncio.to_thread(delete_old, Path(get_upload_folder()), MAX_AGE, MAX_TOTAL)
        await asyncio.sleep(INTERVAL)


def delete_old(folder: Path, age: float, total: float) -> None:
    """
    Delete what was not written to for some time, and the oldest files if all have too many bytes.

    Args:
        folder (`Path`): Files in it and below it are deleted, and folders without any.
        age (`float`): Seconds.
        total (`float`): Bytes of all files that stay.
    """
    oldest, found = time.time() - age, []
    for below, folders, files in os.walk(folder, topdown=False):
        for name in files + folders:
            path = Path(below, name)
            with suppress(OSError):  # a folder is not empty, or somebody else has deleted it
                status = path.lstat()
                if status.st_ctime < oldest:
                    path.unlink() if name in files else path.rmdir()
                elif name in files:
                    found.append((status.st_ctime, status.st_size, path))
    for _, size, path in sorted(found, reverse=True):
        total -= size
        if total < 0:
            path.unlink(missing_ok=True)
