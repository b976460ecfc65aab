"""Help texts of command-line arguments, from the docstrings that describe them."""

from dataclasses import fields
from types import MappingProxyType
from typing import TypeVar


T = TypeVar("T", bound=type)


def help_from_docstring(docstring: str | None) -> dict[str, str]:
    """
    The description of each argument in a Hugging Face style docstring.

    Args:
        docstring (`str`, *optional*): The docstring.

    Returns:
        `dict[str, str]`: description by name, without type and default, ready for argparse.
    """
    helps: dict[str, str] = {}
    name = ""
    for line in (docstring or "").splitlines():
        entry = line.strip()
        if "(`" in entry and entry.endswith("):") and entry.split()[0].isidentifier():
            name = entry.split()[0]
            helps[name] = ""
        elif name and entry:
            helps[name] = f"{helps[name]} {entry}".strip()
    # argparse formats help texts with %.
    return {name: text.replace("`", "").replace("%", "%%") for name, text in helps.items()}


def documented(cls: T) -> T:
    """Class decorator: the fields of a dataclass get their help texts from its docstring."""
    helps = help_from_docstring(cls.__doc__)
    for item in fields(cls):
        if item.name in helps:
            item.metadata = MappingProxyType({**item.metadata, "help": helps[item.name]})
    return cls
