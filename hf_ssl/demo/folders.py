"""Where the page has what it deletes again: uploads, and what it fetches and computes for visitors."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path


_given = os.environ.get("GRADIO_TEMP_DIR")
if _given:
    os.makedirs(_given, exist_ok=True)
# A new folder, as what is old in it is deleted.
TEMPORARY = Path(tempfile.mkdtemp(prefix="hf_ssl-demo-", dir=_given))
os.environ["GRADIO_TEMP_DIR"] = str(TEMPORARY / "uploads")


@atexit.register
def delete_all() -> None:
    """Delete all that is temporary; the page cannot be used any longer."""
    shutil.rmtree(TEMPORARY, ignore_errors=True)
