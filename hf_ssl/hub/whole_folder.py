"""A folder that a conversion fills: whole, or as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def whole_folder(output_dir: str | Path) -> Iterator[Path]:
    """
    Fill a new folder in one go: what is written inside the block takes its place there when the block has ended well.
    Otherwise the folder stays empty, or is not there.

    Args:
        output_dir (`str` or `Path`): The folder; made if there is none.

    Returns:
        `Path`: a folder of the same name to write into.

    Raises:
        `ValueError`: it is a file, or a folder that holds something.
    """
    output_dir = Path(output_dir).resolve()
    is_new = not output_dir.exists()
    if not is_new and not output_dir.is_dir():
        raise ValueError(f"{output_dir} is a file: name a folder to write into.")
    others = [] if is_new else sorted(entry.name for entry in output_dir.iterdir())
    if others:
        raise ValueError(f"{output_dir} holds {others[0]}: name a new folder to write into, or empty this one.")
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(dir=output_dir, prefix=".unfinished-") as aside:
            folder = Path(aside) / output_dir.name
            folder.mkdir()
            yield folder
            for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == "README.md"):  # which comes last
                entry.rename(output_dir / entry.name)
    except BaseException:
        if is_new:
            output_dir.rmdir()
        raise


__all__ = ["whole_folder"]
