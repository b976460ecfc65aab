"""What Gradio leaves to the page: which files and inputs it takes, and how pictures are written for many visitors at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
from fastapi import Request
from fastapi.responses import JSONResponse
from gradio.route_utils import FnIndexInferError
from gradio.utils import get_upload_folder
from gradio_client.utils import is_file_obj, traverse
from transformers.utils import logging

from .photos import REFUSED, refusal


logger = logging.get_logger(__name__)

_SEE = 'See "Use via API" at the foot of the page.'


class Page(gr.Blocks):
    """
    A `gradio.Blocks` that reads no file but those that were uploaded, tells clients what was wrong, and never shows half of a
    picture.
    """

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any = None, *args: Any, **kwargs: Any
    ) -> list[Any]:
        if len(inputs) != len(block_fn.inputs):
            raise refusal(f"This takes {len(block_fn.inputs)} inputs, not {len(inputs)}. {_SEE}")
        for block in block_fn.inputs:
            # At an update, be it gr.skip(), Gradio makes a component anew, without what photo_input has changed.
            if state is not None and "preprocess" in vars(block) and block._id in state:
                state[block._id].preprocess = block.preprocess
        try:
            traverse(inputs, _check_file, is_file_obj)
            processed: list[Any] = await super().preprocess_data(block_fn, inputs, state, *args, **kwargs)
        except Exception as error:  # components raise about any type at a value of another, and repeat all of it
            if isinstance(error, gr.Error) and error.title == REFUSED:
                raise
            logger.info("An input was refused.", exc_info=True)
            raise refusal(f"An input is of another kind than is taken here, or out of its range. {_SEE}") from None
        return processed

    async def postprocess_data(self, block_fn: Any, predictions: Any, *args: Any, **kwargs: Any) -> list[Any]:
        is_one = len(block_fn.outputs) == 1
        if block_fn.outputs and not isinstance(predictions, dict):  # which are updates
            values = [predictions] if is_one else predictions
            pairs = zip(block_fn.outputs, values, strict=True)
            written = [value if block.stateful else await asyncio.to_thread(_write, value) for block, value in pairs]
            predictions = written[0] if is_one else written
        processed: list[Any] = await super().postprocess_data(block_fn, predictions, *args, **kwargs)
        return processed


def _check_file(file: dict[str, Any]) -> None:
    """Gradio would fetch addresses of any size, and of files without its mark (`meta`) take those of this machine."""
    if not Path(file["path"]).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise refusal("Upload the photo as a file: neither addresses nor files of this machine are opened.")


def _write(value: Any) -> Any:
    """Pictures become files. Gradio writes the same one in place for each visitor, who may get half of another's."""

    def write(picture: PIL.Image.Image) -> str:
        content = BytesIO()
        picture.save(content, "PNG", compress_level=1)  # for speed, not size
        folder = Path(get_upload_folder(), hashlib.sha256(content.getvalue()).hexdigest())
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as part:
            part.write(content.getvalue())
        os.replace(part.name, folder / "image.png")
        return str(folder / "image.png")

    return traverse(value, write, lambda part: isinstance(part, PIL.Image.Image))


def refusals_in_place(function: Callable[..., Any], outputs: Sequence[gr.components.Component]) -> Callable[..., Any]:
    """
    For what happens by itself as a visitor goes on: what cannot be done is said in the place of the result, not in front of
    the page. And after an error, Gradio forgets what was asked for meanwhile.

    Args:
        function (`Callable`): What a function of the page does.
        outputs (`Sequence[gradio.components.Component]`): Where its results are shown.

    Returns:
        `Callable`: the same; if the function refuses, its words are why, and its pictures and tables are empty.
    """

    def without_result(output: gr.components.Component, message: str) -> Any:
        return message if isinstance(output, gr.Markdown) else [] if isinstance(output, gr.Dataframe) else None

    @wraps(function)  # Gradio looks for a `gradio.Progress` among its arguments
    def run(*inputs: Any) -> Any:
        try:
            return function(*inputs)
        except gr.Error as error:
            results = [without_result(output, str(error.message)) for output in outputs]
            return results if len(results) > 1 else results[0]

    return run


async def _answer(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({"detail": f"There is nothing here that takes this request. {_SEE}"}, status_code=400)


# What Gradio's routes raise at requests of another form. Exception itself would be answered, and raised again.
UNCLEAR_REQUESTS = dict.fromkeys((FnIndexInferError, LookupError, TypeError, ValueError, AttributeError), _answer)
