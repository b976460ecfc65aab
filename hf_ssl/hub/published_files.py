"""Which files of a folder belong on the Hub, and whether everybody may see them."""

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.constants import REPOCARD_NAME
from safetensors import SafetensorError, safe_open
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


_MODEL = r"(preprocessor_)?config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
# What runs, conversions, evaluations and exports leave. Not `pretraining/bank.safetensors`, which ISL keeps of its training
# images, for training on here.
_BELONGING = re.compile(
    rf"{_MODEL}|README\.md|LICENSE(\.\w+)?|NOTICE|all_results\.json|trainer_state\.json|evaluation\.md"
    rf"|pretraining/({_MODEL}|views\.json)"
    r"|figures/([^/]+/)?[^/]+\.(png|csv)|\.eval_results/[^/]+\.yaml|onnx/[^/]+\.onnx(\.data)?"
)
# Of these, what people write themselves on the Hub.
_OF_PEOPLE = re.compile(
    r"README\.md|LICENSE(\.\w+)?|NOTICE|\.eval_results/(?!hf_ssl-)[^/]+\.yaml|onnx/(?!model\.onnx)[^/]+"
)
_BINARY = {".png": b"\x89PNG\r\n", ".onnx": b"\x08"}  # how these files begin

_TOKEN = re.compile(r"hf_(oauth_|jwt_)?[A-Za-z0-9]{20,}")
_REST_OF_PATH = r"[^\s\"'`,;()<>]*"
_FILE_URL = re.compile(rf"\bfile://{_REST_OF_PATH}")
_HOME_OF_SOMEBODY = re.compile(rf"(?<![\w.])(/home/|/Users/|[A-Za-z]:\\+Users\\+)\w{_REST_OF_PATH}")
_PICTURE = re.compile(r"!\[[^\]]*\]\(\s*(?!\w+:)([^)\s]+)")


@dataclass(frozen=True)
class PublishedFiles:
    """
    Files of a folder.

    Args:
        folder (`Path`): The folder.
        names (`tuple[str, ...]`): What belongs on the Hub, by paths relative to the folder.
        left_out (`tuple[str, ...]`): What stays here; folders of which nothing belongs on the Hub end with a slash.
    """

    folder: Path
    names: tuple[str, ...]
    left_out: tuple[str, ...]


def published_files(folder: str | Path) -> PublishedFiles:
    """
    What of a folder is for the Hub, after a look into all of it.

    Args:
        folder (`str` or `Path`): An encoder, a classifier or a conversion.

    Returns:
        [`PublishedFiles`]

    Raises:
        `ValueError`: there is no whole model in the folder, a file is not what its name says, or one holds a token or a path
        of this machine.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    code = _code(folder)
    names = tuple(name for name in found if name in code or _BELONGING.fullmatch(name))
    _check_whole(folder, "", names, {IMAGE_PROCESSOR_NAME, REPOCARD_NAME, *code})
    if any(name.startswith("pretraining/") for name in names):
        _check_whole(folder, "pretraining/", names, set())
    for name in names:
        _check_private(folder, name, _content(folder / name, name))
    _check_card(folder, names)
    return PublishedFiles(folder, names, tuple(_shortened(set(found) - set(names), names)))


def is_replaced(name: str) -> bool:
    """
    Whether a file on the Hub belongs to what a push replaces as a whole, so that it is deleted where the folder has no such
    file: a shard, a picture or the ONNX file of other weights, for example.

    Args:
        name (`str`): Its path in the repository.

    Returns:
        `bool`
    """
    return _BELONGING.fullmatch(name) is not None and _OF_PEOPLE.fullmatch(name) is None


def _code(folder: Path) -> set[str]:
    """The files beside the weights that the configuration names, of encoders that transformers lacks."""
    if not (folder / CONFIG_NAME).is_file():
        return set()
    auto_map = _mapping(_read_json(folder / CONFIG_NAME, CONFIG_NAME), CONFIG_NAME).get("auto_map", {})
    values = [str(value) for value in _mapping(auto_map, f"auto_map in {CONFIG_NAME}").values()]
    return {
        f"{value.partition('.')[0]}.py" for value in values if "--" not in value
    }  # org/name--module lies elsewhere


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is a {type(value).__name__} instead of names with values. Write the folder again.")
    return value


def _read_json(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of bytes that are no text, too
        raise ValueError(f"{name} is no JSON: {error}. Write the folder again.") from error


def _check_whole(folder: Path, place: str, names: tuple[str, ...], also: set[str]) -> None:
    """Refuse what nobody could load; a run and a conversion write the card last."""
    needed = {f"{place}{CONFIG_NAME}", *also}
    index = f"{place}{SAFE_WEIGHTS_INDEX_NAME}"
    if index in names:
        weight_map = _mapping(_read_json(folder / index, index), index).get("weight_map")
        needed |= {f"{place}{shard}" for shard in _mapping(weight_map, f"weight_map in {index}").values()}
    else:
        needed.add(f"{place}{SAFE_WEIGHTS_NAME}")
    missing = sorted(needed - set(names))
    if missing:
        raise ValueError(
            f"{folder} does not hold a whole model: {', '.join(missing)} missing. A run or a conversion that ended well "
            "leaves a configuration, weights in safetensors, an image processor and, at last, README.md."
        )


def _content(path: Path, name: str) -> str:
    """What a file tells in words. One that is not what its name says is refused: it may be a pickle, and so code."""
    doubt = "it may be damaged, or a pickle. Write it again, or delete it."
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="np") as file:
                return json.dumps(file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{name} is no whole safetensors file ({error}); {doubt}") from error
    if path.suffix == ".data":  # numbers of the ONNX file of this name
        content = path.read_bytes()
        if not path.with_suffix("").is_file() or content.startswith(b"\x80"):
            raise ValueError(f"{name} holds no numbers of an ONNX file beside it; {doubt}")
        return content.decode("latin-1")
    if path.suffix in _BINARY:
        content = path.read_bytes()
        if not content.startswith(_BINARY[path.suffix]):
            raise ValueError(f"{name} is no {path.suffix[1:].upper()} file; {doubt}")
        return content.decode("latin-1")
    if path.suffix == ".json":
        _read_json(path, name)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no text; {doubt}") from error


def _check_private(folder: Path, name: str, content: str) -> None:
    """Refuse a file that tells everybody what is for nobody."""
    if token := _TOKEN.search(content):
        raise ValueError(
            f"{name} holds a token, {token[0][:7]}…, with which everybody could act for its owner. Delete it there, revoke "
            "it in the settings of the Hub, and push again."
        )
    # In files that are no text, a few letters are soon found by chance.
    end = r"(?=/[\w.-]{3})" if Path(name).suffix in (*_BINARY, ".data") else r"(?![\w-])"
    for pattern in (_local_paths(folder, end), _FILE_URL, _HOME_OF_SOMEBODY):
        if path := pattern.search(content):
            raise ValueError(
                f"{name} holds a path of this machine, {path[0]}, which is of no use to others. Put a name in its place, "
                "and push again."
            )


def _local_paths(folder: Path, end: str) -> re.Pattern[str]:
    places = {folder.absolute(), folder.resolve(), Path.cwd(), Path.home(), Path(tempfile.gettempdir())}
    alternatives = "|".join(re.escape(str(place)) for place in places if place.parent != place)  # not the root
    return re.compile(rf"(?<![\w.])({alternatives}){end}{_REST_OF_PATH}")


def _check_card(folder: Path, names: tuple[str, ...]) -> None:
    """Refuse metadata that the Hub cannot read, and pictures that would not be there."""
    try:
        ModelCard.load(folder / REPOCARD_NAME)
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"The metadata of {REPOCARD_NAME}, between the lines of dashes, cannot be read: {error}"
        ) from error
    for name in {REPOCARD_NAME, "evaluation.md"} & set(names):
        shown = _PICTURE.findall((folder / name).read_text(encoding="utf-8"))
        missing = sorted({PurePosixPath(picture).as_posix() for picture in shown} - set(names))
        if missing:
            raise ValueError(
                f"{name} shows {', '.join(missing)}, which is not among the files that belong on the Hub: put it into "
                "figures/, as a PNG file, or take it out of the page."
            )


def _shortened(left_out: set[str], names: tuple[str, ...]) -> list[str]:
    """Files; in the place of all files of a folder, the folder."""
    with_names = {parent for name in names for parent in PurePosixPath(name).parents}
    short = set()
    for name in left_out:
        folders = [parent for parent in PurePosixPath(name).parents if parent not in with_names]
        short.add(f"{folders[-1]}/" if folders else name)
    return sorted(short)


__all__ = ["PublishedFiles", "is_replaced", "published_files"]
