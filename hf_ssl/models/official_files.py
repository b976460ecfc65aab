"""Files that the methods' authors wrote with torch.save: read without running any code that they may contain."""

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


State = dict[str, Tensor]

# What people give by mistake, by how it begins.
_OTHER_FILES = {
    rb"version https://git-lfs": "a pointer of git-lfs, not the file that it stands for: fetch that (`git lfs pull`)",
    rb"\s*<": "a web page, or the like: download the file itself",
    rb'.{8}\{"': "a file of safetensors: the authors' checkpoints are files of torch.save",
}

_MOST_CLASSES = 300
_HARMFUL = {"builtins", "__builtin__", "os", "posix", "nt", "sys", "subprocess", "runpy", "importlib"}
_MEMBERS = ("_parameters", "_buffers", "_modules")


class CheckpointError(ValueError):
    """A checkpoint that cannot be converted; the message says why and what would help."""


class StandIn:
    """In the place of an object whose class is not to be trusted: its attributes, and nothing that runs."""

    stands_for = ""

    def __new__(cls, *args: Any) -> "StandIn":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _stand_in(name: str) -> Callable[..., Any]:
    return type("StandIn", (StandIn,), {"stands_for": name})


def load_checkpoint(path: str | Path, map_location: str = "cpu") -> Any:
    """
    Read a file of `torch.save` without running any code that it may contain: every object that is not a tensor, a number, a
    string or a container becomes a [`StandIn`].

    Args:
        path (`str` or `Path`): The file.
        map_location (`str`, *optional*, defaults to `"cpu"`): Where tensors go; `"meta"` reads their names and sizes only.

    Returns:
        `Any`: its content.

    Raises:
        [`CheckpointError`]: the file is missing, damaged, something else, or cannot be read safely.
    """
    path = Path(path)
    try:
        _check_kind(path)
        names = _names_of_objects(path)
        if len(names) > _MOST_CLASSES:  # torch looks through all of them for each object
            raise CheckpointError(f"{path} names {len(names):,} classes, as no checkpoint does, and is not read.")
        with torch.serialization.safe_globals([(_stand_in(name), name) for name in names]):
            return torch.load(path, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        # The unpickler names the first thing that it refuses to make; the rest of its message advises to let it.
        refused = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        if refused and (zipfile.is_zipfile(path) or refused[1].partition(".")[0] in _HARMFUL):
            raise CheckpointError(
                f"{path} asks for `{refused[1]}`, which no checkpoint needs: the file may be hostile, and is not read."
            ) from error
        if refused:
            raise CheckpointError(
                f"{path} holds an object of `{refused[1]}`, and is in the format of torch before 1.6, of which such objects "
                "cannot be read safely. Where you trust it, load it with the authors' code, and save it again with a torch "
                "of today."
            ) from error
        raise CheckpointError(
            f"{path} cannot be read safely: it is damaged, no file of torch.save, of another pickle_protocol than 2, or "
            "holds dictionaries of classes of their own. Where you trust it, save its content again, as plain dictionaries."
        ) from error
    except Exception as error:  # zip and OS errors of many classes; all end here, with their cause
        reason = (str(error).splitlines() or [""])[0]
        reason = (
            f": {reason.rstrip('.')}" if " " in reason else ""
        )  # else a number or a key, which tells nobody anything
        raise CheckpointError(
            f"{path} cannot be read safely{reason}. It is damaged, or no file of torch.save."
        ) from error


def _check_kind(path: Path) -> None:
    """Refuse, with a word of their own, what is no checkpoint, and archives that would unpack to more than they are."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give the checkpoint file in it.")
    if not path.exists():
        raise CheckpointError(f"There is no checkpoint file at {path}.")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise CheckpointError(f"{path} is empty.")
    for pattern, kind in _OTHER_FILES.items():
        if re.match(pattern, start, re.DOTALL):
            raise CheckpointError(f"{path} is {kind}.")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked, size = sum(item.file_size for item in archive.infolist()), path.stat().st_size
        if unpacked > size:
            raise CheckpointError(
                f"{path} has {size:,} bytes and would unpack to {unpacked:,}: torch.save does not compress, and so large a "
                "file may be a trap. Where you trust it, save its content again."
            )


def _names_of_objects(path: Path) -> list[str]:
    """Classes and functions that a file asks for, beside torch's own. Files of torch before 1.6 do not tell."""
    return torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []


def names_in(content: Any) -> set[str]:
    """
    Names of everything in a file, by which it is recognized.

    Args:
        content: What [`load_checkpoint`] has read.

    Returns:
        `set[str]`: keys of dictionaries and modules, one in the other (`state_dict.base_encoder.cls_token`), without DDP's
        `module`; all begin with `(module)` where a whole module was pickled.
    """
    names: set[str] = set()
    waiting, seen = [("(module)" if isinstance(content, StandIn) else "", content)], set()
    while waiting:
        prefix, part = waiting.pop()
        if id(part) in seen or len(prefix) > 1000:  # deeper than any checkpoint
            continue
        seen.add(id(part))
        for members in [part.__dict__.get(kind) for kind in _MEMBERS] if isinstance(part, StandIn) else [part]:
            for key, value in members.items() if isinstance(members, dict) else ():
                if isinstance(key, str):
                    name = ".".join(word for word in (prefix, *key.split(".")) if word not in ("", "module"))
                    names.add(name)
                    waiting.append((name, value))
    return names


def tensors_of(state: Any, path: str | Path) -> State:
    """
    Tensors by name, without the `module.` that DDP puts in front of all of them.

    Args:
        state: A part of a file.
        path (`str` or `Path`): The file; for messages.

    Returns:
        `dict[str, torch.Tensor]`

    Raises:
        [`CheckpointError`]: it is something else, or a tensor claims a shape that it has no numbers for.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} has {_describe(state)} in the place of a `state_dict` of tensors.")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path} has no `state_dict` of tensors: {name!r} is {_describe(tensor)}.")
        if not _holds_its_numbers(tensor):
            raise CheckpointError(
                f"{path} claims the shape {tuple(tensor.shape)} for the tensor {name!r}, but does not hold its numbers."
            )
    # A pickled tensor may bring attributes in the place of its methods: what is detached has none.
    plain = {name: Tensor.detach(tensor) for name, tensor in state.items()}
    return under(plain, "module.") if all(name.startswith("module.") for name in plain) else plain


def _holds_its_numbers(tensor: Tensor) -> bool:
    """Whether a tensor is one of numbers in memory: not sparse, expanded, or of the device without memory."""
    plain = Tensor.detach(tensor)
    is_here = plain.device.type == "cpu" and plain.layout == torch.strided
    return is_here and plain.nbytes <= plain.untyped_storage().nbytes()


def _describe(value: Any) -> str:
    return f"an object of `{type(value).stands_for}`" if isinstance(value, StandIn) else f"a {type(value).__name__}"


def under(state: Mapping[str, Tensor], prefix: str) -> State:
    """The tensors whose names begin with the prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class OfficialCheckpoint:
    """
    What is read from a file of a state dict, or of a whole module.

    Args:
        tensors (`dict[str, torch.Tensor]`): Its tensors by official names.
        num_attention_heads (`int`, *optional*): Heads of the attention; only files of whole modules tell them.
        layer_norm_eps (`float`, *optional*): Epsilon of the LayerNorms; as the heads.
    """

    tensors: State
    num_attention_heads: int | None = None
    layer_norm_eps: float | None = None

    def heads(self, given: int | None) -> int | None:
        """What the file tells, or the user; a [`CheckpointError`], where they differ."""
        told = self.num_attention_heads
        if told is not None and given not in (None, told):
            raise CheckpointError(f"--num_attention_heads {given} contradicts the file, whose attention has {told}.")
        return given if told is None else told


def read_official(path: str | Path) -> OfficialCheckpoint:
    """
    Read a file of tensors by name, of a dictionary that has them as its `state_dict`, or of a whole pickled module, of which
    only tensors and numbers are read.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        [`OfficialCheckpoint`]

    Raises:
        [`CheckpointError`]: it cannot be read safely, or holds something else.
    """
    content = load_checkpoint(path)
    if isinstance(content, StandIn):
        return _read_module(content, path)
    if isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    return OfficialCheckpoint(tensors_of(content, path))


def _read_module(module: StandIn, path: str | Path) -> OfficialCheckpoint:
    tensors, heads, epsilons = {}, [], []
    for prefix, part in _modules_in(module, path):
        unsaved = part.get("_non_persistent_buffers_set")
        buffers = {k: v for k, v in part["_buffers"].items() if not isinstance(unsaved, set) or k not in unsaved}
        for name, tensor in (part["_parameters"] | buffers).items():
            if tensor is not None:
                tensors[f"{prefix}{name}"] = getattr(tensor, "data", tensor)
        if prefix.endswith(".attn."):
            heads.append(part.get("num_heads"))
        elif prefix.endswith(".norm1."):
            epsilons.append(part.get("eps"))
    settings: dict[str, Any] = {}
    if heads and all(type(told) is int and told == heads[0] for told in heads):  # a bool is none
        settings["num_attention_heads"] = heads[0]
    if epsilons and all(isinstance(told, float) and 0.0 < told < 1.0 and told == epsilons[0] for told in epsilons):
        settings["layer_norm_eps"] = epsilons[0]
    return OfficialCheckpoint(tensors_of(tensors, path), **settings)


def _modules_in(module: StandIn, path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Attributes of a module and of all modules in it, each with the prefix of its tensors' names."""
    waiting: list[tuple[str, Any]] = [("", module)]
    seen = set()
    while waiting:
        prefix, part = waiting.pop()
        attributes = part.__dict__ if isinstance(part, StandIn) else {}
        if id(part) in seen or not all(isinstance(attributes.get(kind), dict) for kind in _MEMBERS):
            raise CheckpointError(f"{path} holds {_describe(part)}, which is no module, or only a part of one.")
        seen.add(id(part))
        yield prefix, attributes
        waiting += [(f"{prefix}{name}.", child) for name, child in attributes["_modules"].items() if child is not None]


__all__ = [
    "CheckpointError",
    "OfficialCheckpoint",
    "StandIn",
    "State",
    "load_checkpoint",
    "names_in",
    "read_official",
    "tensors_of",
    "under",
]
