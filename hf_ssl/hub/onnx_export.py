"""Models as ONNX, for those who run them without torch."""

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx import OnnxExporterError
from transformers import PreTrainedModel


# What is exported of what a model computes, where it is there.
OUTPUTS = ("last_hidden_state", "pooler_output", "logits")
TRACED_BATCH = 2
CHECKED_BATCHES = (1, TRACED_BATCH, 5)
TOLERANCE = 1e-4


@dataclass(frozen=True)
class OnnxFile:
    """
    What was exported.

    Args:
        path (`Path`): The file.
        opset (`int`): Version of ONNX's operators.
        inputs (`dict[str, list[str | int]]`): Shape of each input, by name; a name stands for any size.
        outputs (`dict[str, list[str | int]]`): Shape of each output, by name.
        error (`float`): The largest difference between onnxruntime and torch, over the largest value of the output.
    """

    path: Path
    opset: int
    inputs: dict[str, list[str | int]]
    outputs: dict[str, list[str | int]]
    error: float


class PixelsToOutputs(nn.Module):
    """
    The function that is exported.

    Args:
        model (`PreTrainedModel`): The model whose weights it uses.
        compute (`Callable`): From pixel values to the model's output.
    """

    def __init__(self, model: PreTrainedModel, compute: Callable[[Tensor], Mapping[str, Any]]):
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """`(batch_size, channels, height, width)` to tensors by name; a pooled output is `(batch_size, features)`."""
        outputs = self.compute(pixel_values)
        found = {name: outputs[name] for name in OUTPUTS if outputs.get(name) is not None}
        if "pooler_output" in found:
            found["pooler_output"] = found["pooler_output"].flatten(1)  # of a ResNet, it has a height and a width of 1
        return found


def require_onnx() -> None:
    """
    Checks that models can be exported and run.

    Raises:
        `ImportError`: a package is missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'Export to ONNX needs {", ".join(missing)}: run `pip install "hf_ssl[onnx]"`.')


def export_onnx(
    model: PreTrainedModel,
    compute: Callable[[Tensor], Mapping[str, Any]],
    image_shape: tuple[int, int, int],
    path: str | Path,
) -> OnnxFile:
    """
    Write a model as ONNX, for batches of any size, and compare what onnxruntime computes with it to what torch does. Nothing
    is written if they differ. The model's attention is left in its plain form, which every version of ONNX can tell.

    Args:
        model (`PreTrainedModel`): The model, in eval mode, in float32.
        compute (`Callable`): What is exported: from pixel values to the model's output.
        image_shape (`tuple[int, int, int]`): Channels, height and width of its images.
        path (`str` or `Path`): The file; its folder is made if need be. Weights of more than 2 GB lie beside it.

    Returns:
        [`OnnxFile`]

    Raises:
        `ImportError`: a package is missing.
        `ValueError`: the model cannot be exported, or computes something else there.
    """
    require_onnx()
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    generator = torch.Generator().manual_seed(0)
    images = {size: torch.randn(size, *image_shape, generator=generator) for size in CHECKED_BATCHES}
    exported = PixelsToOutputs(model, compute).eval()
    with torch.no_grad():
        expected = {size: exported(pixel_values) for size, pixel_values in images.items()}
    model.set_attn_implementation("eager")
    name, path = type(model).__name__, Path(path)
    try:
        program: Any = torch.onnx.export(
            exported,
            (images[TRACED_BATCH],),
            input_names=["pixel_values"],
            output_names=list(expected[TRACED_BATCH]),
            dynamic_shapes={"pixel_values": {0: "batch_size"}},
            dynamo=True,
            verbose=False,
        )
    except OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(
            f"A {name} cannot be exported: ONNX lacks an operation, or torch.export cannot follow its code for batches of "
            f"any size (a loop over images is for one size). {reason}"
        ) from error
    # Torch notes at each node where in the code, and so in this machine, it is from.
    ClearMetadataAndDocStringPass()(program.model)
    with TemporaryDirectory() as folder:
        program.save(Path(folder) / path.name)
        inputs, outputs, difference = _compare(Path(folder) / path.name, images, expected, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in sorted(Path(folder).iterdir(), reverse=True):  # what lies beside the model comes before the model
            part = path.with_name(f"{file.name}.part")
            shutil.copyfile(file, part)
            part.replace(path.with_name(file.name))
    return OnnxFile(path, program.model.opset_imports[""], inputs, outputs, difference)


def _compare(
    path: Path, images: dict[int, Tensor], expected: dict[int, dict[str, Tensor]], name: str
) -> tuple[dict[str, list[str | int]], dict[str, list[str | int]], float]:
    """Shapes of the inputs and outputs of a file, and how far onnxruntime is from torch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs, outputs = (
        {node.name: list(node.shape) for node in nodes()} for nodes in (session.get_inputs, session.get_outputs)
    )
    error = 0.0
    for size, pixel_values in images.items():
        values = session.run(list(outputs), {"pixel_values": pixel_values.numpy()})
        for output, value in zip(outputs, values, strict=True):
            reference = expected[size][output]
            difference = (torch.from_numpy(value) - reference).abs().max() / reference.abs().max()
            error = max(error, difference.nan_to_num(float("inf")).item())
    if error > TOLERANCE:
        raise ValueError(
            f"A {name} computes something else with onnxruntime than with torch: they differ by {error:.1e} of the largest "
            f"value, and {TOLERANCE:.0e} is allowed. Nothing was written. Does it draw random numbers?"
        )
    return inputs, outputs, error
