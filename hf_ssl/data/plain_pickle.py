"""
Reads pickle files that hold plain data, and nothing else.

A pickle is a program: what it names is imported and called. A `pickle.Unpickler` with a list of allowed names still
calls them with any arguments, sets their attributes, trusts the sizes that a file claims, and can be made to overflow
the stack. Here the few operations that make plain data are carried out one by one, and all others are refused; nothing
that a file names is imported.
"""

import math
import os
import pickletools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np


# Annotations take less than a megabyte and 300,000 operations, and each operation may make an object of 200 bytes.
MAX_BYTES = 4 * 2**20
MAX_OPERATIONS = 10**6
MAX_ARGUMENTS = 9  # the state of a numpy type has as many

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PlainPickleError(ValueError):
    """A pickle that is damaged, or that asks for more than plain data. The message names the file and the remedy."""


def load_plain_pickle(path: str | os.PathLike[str]) -> Any:
    """
    Loads a pickle of plain data, without running anything that the file names.

    Strings that Python 2 has written are read as Latin-1.

    Args:
        path (`str` or `os.PathLike`):
            A file of any pickle protocol. It may hold numbers, strings, bytes, booleans, `None`, lists, tuples,
            dictionaries and sets of them, and numpy arrays and scalars of numbers and strings. Integers have at most
            64 bits, and the keys of dictionaries and the members of sets are strings or bytes.

    Returns:
        `Any`: the data.

    Raises:
        [`PlainPickleError`]: If the file holds anything else, has more than 4 MiB or a million operations, or is
            not a whole pickle.
        `OSError`: If the file cannot be opened.
    """
    name = repr(os.fspath(path))
    with Path(path).open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise PlainPickleError(
            f"Cannot read {name}: it has more than the {MAX_BYTES // 2**20} MiB allowed for a pickle of plain data. "
            "Check that it is the right file."
        )
    try:
        value = _read(data)
        _check_plain(value)
    except _LimitError as error:
        raise PlainPickleError(
            f"Cannot read {name}: it has {error} allowed for a pickle of plain data. Check that it is the right file."
        ) from error
    except _RefusedError as error:
        raise PlainPickleError(
            f"Cannot read {name}: it asks for {error}. Only plain data is read, as anything else could run code: "
            "get the file from a source you trust, or save its lists, dictionaries, strings and numbers alone."
        ) from error
    except Exception as error:  # a damaged file may fail anywhere
        reason = f"{type(error).__name__}: {error}"
        raise PlainPickleError(
            f"Cannot read {name}: it is not a pickle of plain data, or it is damaged ({reason:.200}). Get the file "
            "again."
        ) from error
    return value


class _RefusedError(Exception):
    """What a file asks for and does not get."""


class _LimitError(Exception):
    """What a file has more of than is allowed."""


class _Function:
    """Stands in the place of a function or class that a file names."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


class _DType:
    """A numpy type of numbers or strings, whose byte order is known later than the rest of it."""

    def __init__(self, code: Any, *flags: Any) -> None:
        # In an array of objects, or of structures that hold some, bytes of the file would be taken for addresses.
        if not isinstance(code, str) or not re.fullmatch(r"[biufcSU][1-9]\d{0,6}", code):
            raise _RefusedError(f"the numpy type {_show(code)}")
        self.code = code
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        version, byte_order, subarray, names, fields = state[:5]
        if byte_order not in ("<", ">", "|", "=") or (subarray, names, fields) != (None, None, None):
            raise _RefusedError(f"the numpy type {self.code!r} with parts")
        self.dtype = np.dtype(byte_order + self.code)


def _show(value: Any) -> str:
    """Only of strings, as the text of a small but nested list may fill the memory."""
    return repr(value[:80]) if isinstance(value, str) else f"a {type(value).__name__}"


def _refuse_array(*arguments: Any) -> None:
    raise _RefusedError("a call of `numpy.ndarray`")


def _reconstruct(subtype: Any, shape: Any, code: Any) -> np.ndarray:
    if subtype is not _NDARRAY:
        raise _RefusedError("a numpy array of another class")
    return np.empty(0, np.uint8)  # until its state follows


def _set_array(array: np.ndarray, state: Any) -> None:
    version, shape, dtype, is_fortran, data = state
    data = _to_bytes(data)
    # Only of small integers can a product be taken in short time and memory.
    if type(shape) is not tuple or len(shape) > 64 or not all(type(n) is int and n in range(2**63) for n in shape):
        raise ValueError("the shape of a numpy array is not a tuple of sizes")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise ValueError(f"a numpy array of shape {shape} cannot be made of {len(data)} bytes")
    checked: Any = (1, shape, dtype.dtype, bool(is_fortran), data)
    array.__setstate__(checked)


def _from_buffer(data: Any, dtype: _DType, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    array = np.frombuffer(_to_bytes(data), dtype.dtype)
    array = array.reshape(shape, order=order) if axes is None else array.reshape(shape).transpose(axes)
    return array.copy("K")


def _scalar(dtype: _DType, data: Any) -> np.generic:
    (value,) = np.frombuffer(_to_bytes(data), dtype.dtype)
    return value


def _to_bytes(data: Any) -> bytes:
    if isinstance(data, str):  # as Python 2 has it
        return data.encode("latin-1")
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"a numpy array is made of bytes, not of {type(data).__name__}")
    return bytes(data)


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes to a protocol that has none."""
    if encoding not in ("latin1", "latin-1"):
        raise _RefusedError(f"the encoding {_show(encoding)}")
    return text.encode("latin-1")


def _complex(real: float, imaginary: float) -> complex:
    # The number that a long text holds is found in long time.
    if not isinstance(real, int | float) or not isinstance(imaginary, int | float):
        raise ValueError("a complex number is not made of two numbers")
    return complex(real, imaginary)


def _empty_bytes() -> bytes:
    return b""


def _hashable(values: Iterable[Any]) -> list[Any]:
    """
    Only strings and bytes, whose hashes differ from run to run. Many numbers of one hash, or hashes that meet in a
    table, can be chosen in advance, and take quadratic time; tuples in tuples overflow the stack.
    """
    values = list(values)
    for value in values:
        if not isinstance(value, str | bytes):
            raise ValueError(f"a key or a member of a set is a {type(value).__name__}, not a string or bytes")
    return values


def _set(values: Iterable[Any]) -> set[Any]:
    return set(_hashable(values))


def _frozenset(values: Iterable[Any]) -> frozenset[Any]:
    return frozenset(_hashable(values))


_NDARRAY = _Function(_refuse_array)  # only ever an argument
_FUNCTIONS = {
    ("_codecs", "encode"): _Function(_encode),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Function(_DType),
}
for _module in ("builtins", "__builtin__"):
    _FUNCTIONS[_module, "set"] = _Function(_set)
    _FUNCTIONS[_module, "frozenset"] = _Function(_frozenset)
    _FUNCTIONS[_module, "complex"] = _Function(_complex)
    _FUNCTIONS[_module, "bytes"] = _Function(_empty_bytes)
for _module in ("numpy.core", "numpy._core"):
    _FUNCTIONS[f"{_module}.multiarray", "_reconstruct"] = _Function(_reconstruct)
    _FUNCTIONS[f"{_module}.multiarray", "scalar"] = _Function(_scalar)
    _FUNCTIONS[f"{_module}.numeric", "_frombuffer"] = _Function(_from_buffer)


def _find(module: Any, name: Any) -> _Function:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("the name of a function is not a string")
    if (module, name) not in _FUNCTIONS:
        raise _RefusedError(f"`{module:.80}.{name:.80}`")
    return _FUNCTIONS[module, name]


def _read(data: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[str, Any] = {}  # keyed by text as well, for `_hashable`'s reason

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    def target(kind: type) -> Any:
        if type(stack[-1]) is not kind:
            raise ValueError(f"a {type(stack[-1]).__name__} in the place of a {kind.__name__}")
        return stack[-1]

    def set_items(values: list[Any]) -> None:
        target(dict).update(zip(_hashable(values[::2]), values[1::2], strict=True))

    num_bytes = 0
    argument: Any
    for num_operations, (opcode, argument, _) in enumerate(pickletools.genops(data), start=1):
        if num_operations > MAX_OPERATIONS:
            raise _LimitError(f"more than the {MAX_OPERATIONS:,} operations")
        operation = opcode.name
        if operation in _LITERALS:
            if isinstance(argument, int) and not -(2**63) <= argument < 2**63:
                raise _LimitError("an integer of more than the 64 bits")
            stack.append(argument)
        elif operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
        elif operation in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[str(argument)] = stack[-1]
        elif operation == "MEMOIZE":
            memo[str(len(memo))] = stack[-1]
        elif operation in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[str(argument)])
        elif operation == "MARK":
            marks.append(len(stack))
        elif operation == "EMPTY_LIST":
            stack.append([])
        elif operation == "LIST":
            stack.append(pop_to_mark())
        elif operation == "APPEND":
            value = stack.pop()
            target(list).append(value)
        elif operation == "APPENDS":
            values = pop_to_mark()
            target(list).extend(values)
        elif operation in _TUPLES:
            values = [stack.pop() for _ in range(_TUPLES[operation])][::-1]
            stack.append(tuple(values))
        elif operation == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif operation == "EMPTY_DICT":
            stack.append({})
        elif operation == "DICT":
            values = pop_to_mark()
            stack.append({})
            set_items(values)
        elif operation == "SETITEM":
            values = [stack.pop(), stack.pop()][::-1]
            set_items(values)
        elif operation == "SETITEMS":
            set_items(pop_to_mark())
        elif operation == "EMPTY_SET":
            stack.append(set())
        elif operation == "ADDITEMS":
            values = pop_to_mark()
            target(set).update(_hashable(values))
        elif operation == "FROZENSET":
            stack.append(_frozenset(pop_to_mark()))
        elif operation == "DUP":
            stack.append(stack[-1])
        elif operation == "POP_MARK" or (operation == "POP" and marks and marks[-1] == len(stack)):
            pop_to_mark()
        elif operation == "POP":
            stack.pop()
        elif operation == "GLOBAL":
            module, _, name = argument.partition(" ")
            stack.append(_find(module, name))
        elif operation == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_find(module, name))
        elif operation == "REDUCE":
            arguments = stack.pop()
            function = target(_Function)
            if type(arguments) is not tuple or len(arguments) > MAX_ARGUMENTS:
                raise ValueError("a call without a tuple of few arguments")
            stack[-1] = function.call(*arguments)
            num_bytes += _size(stack[-1])
        elif operation == "BUILD":
            state = stack.pop()
            if type(stack[-1]) is _DType:
                stack[-1].set_state(state)
            else:
                _set_array(target(np.ndarray), state)
                num_bytes += _size(stack[-1])
        elif operation not in ("PROTO", "FRAME", "STOP"):
            # Instances of classes, persistent ids, the registry of extensions, buffers from outside.
            raise _RefusedError(f"the operation {operation}" + (f" with {argument!r:.80}" if argument else ""))
        if num_bytes > len(data):
            raise _RefusedError("many copies of the same data")
    return stack.pop()


def _size(value: Any) -> int:
    """What a call has made of values that the file has once, however often it calls."""
    if isinstance(value, np.ndarray | np.generic):
        return value.nbytes
    return len(value) if isinstance(value, bytes | set | frozenset) else 0


def _check_plain(value: Any) -> None:
    """Refuses what was named but not called. A part that the data holds many times is looked at once."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
        elif isinstance(value, _Function | _DType):
            raise _RefusedError("a function or a type as data")
