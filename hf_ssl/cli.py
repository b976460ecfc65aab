"""The `hf-ssl` command: the scripts of `training/` for those without a checkout."""

import runpy
import sys
from importlib import resources

from .hub_errors import HubError


def main() -> None:
    """Run `hf-ssl SCRIPT …` as `python training/SCRIPT.py …` would be."""
    scripts = sorted(
        path.name.removesuffix(".py")
        for path in resources.files("hf_ssl.scripts").iterdir()
        if path.name.endswith(".py") and not path.name.startswith("_")
    )
    if len(sys.argv) < 2 or sys.argv[1] not in scripts:
        asked_for_help = len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help")
        print(
            f"usage: hf-ssl {{{','.join(scripts)}}} [options]\n\nhf-ssl SCRIPT --help lists the options of a script."
        )
        sys.exit(0 if asked_for_help else 2)
    script = sys.argv.pop(1)
    sys.argv[0] = f"hf-ssl {script}"
    try:
        runpy.run_module(f"hf_ssl.scripts.{script}", run_name="__main__")
    except HubError as error:
        sys.exit(str(error))
