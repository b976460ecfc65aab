"""Put a Space together: the page, this library, and encoders, in one folder that can be uploaded as it is.

python spaces/assemble.py --model outputs/quickstart --output_dir build/space
hf upload org/name build/space . --repo-type space
"""

import shutil
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from transformers import HfArgumentParser

from hf_ssl.hub.published_files import published_files


HERE = Path(__file__).parent
PAGE = ("app.py", "README.md", "requirements.txt")
PACKAGES = {"hf_ssl": "hf_ssl", "hf_ssl.scripts": "hf_ssl/scripts", "hf_ssl.card_templates": "hf_ssl/card_templates"}
UNUSED = ("onnx/", "figures/", ".eval_results/", "pretraining/model")


@dataclass
class AssembleArguments:
    """What goes into the Space."""

    output_dir: str = field(metadata={"help": "The folder to make; it must not be there, or be empty."})
    model: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders of encoders; none, if the variable MODELS of the Space names ids of the Hub."},
    )


def main() -> None:
    (args,) = HfArgumentParser(AssembleArguments, description=__doc__).parse_args_into_dataclasses()
    output = Path(args.output_dir)
    if output.exists() and any(output.iterdir()):
        raise SystemExit(f"--output_dir {output} is not empty: name another folder.")
    folders = [published_files(model) for model in args.model]  # refuses what must not be public
    names = [found.folder.resolve().name for found in folders]
    if len(set(names)) < len(names):
        raise SystemExit(f"Encoders are called like their folders, {', '.join(names)}: rename one.")
    output.mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copy(HERE / name, output / name)
    for package, place in PACKAGES.items():
        with resources.as_file(resources.files(package)) as source:
            shutil.copytree(
                source, output / place, ignore=shutil.ignore_patterns("__pycache__", "figures"), dirs_exist_ok=True
            )
    for name, found in zip(names, folders, strict=True):
        for file in found.names:
            if not file.startswith(UNUSED):
                target = output / "models" / name / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(found.folder / file, target)
    print(f"{output}\nTo upload it: hf upload org/name {output} . --repo-type space")


if __name__ == "__main__":
    main()
