"""A folder that a conversion fills: whole, or as it was."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


_UNFINISHED = ".unfinished-"
# What an earlier conversion has left, finished or not.
_REPLACEABLE = re.compile(
    rf"README\.md|(preprocessor_)?config\.json|model.*\.safetensors(\.index\.json)?|modeling_\w+\.py|pretraining"
    rf"|{re.escape(_UNFINISHED)}.*"
)


@contextmanager
def whole_folder(output_dir: str | Path) -> Iterator[Path]:
    """
    Fill a folder in one go: what is written inside the block takes its place there when the block has ended well. Otherwise
    the folder is as it was, or is not there. An earlier conversion is replaced.

    Args:
        output_dir (`str` or `Path`): The folder; made if there is none.

    Returns:
        `Path`: a folder of the same name to write into.

    Raises:
        `ValueError`: the folder holds something that no conversion has written.
    """
    output_dir = Path(output_dir).resolve()
    is_new = not output_dir.exists()
    if not is_new and not output_dir.is_dir():
        raise ValueError(f"{output_dir} is a file: name a folder to write into.")
    others = [] if is_new else sorted(e.name for e in output_dir.iterdir() if not _REPLACEABLE.fullmatch(e.name))
    if others:
        raise ValueError(
            f"{output_dir} holds {others[0]}, which no conversion has written: name another folder, or empty this one."
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(dir=output_dir, prefix=_UNFINISHED) as aside:
            folder = Path(aside) / output_dir.name
            folder.mkdir()
            yield folder
            for entry in output_dir.iterdir():
                if entry.name != Path(aside).name:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == "README.md"):  # which comes last
                entry.rename(output_dir / entry.name)
    except BaseException:
        if is_new:
            output_dir.rmdir()
        raise


__all__ = ["whole_folder"]
