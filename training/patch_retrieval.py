"""How well an encoder finds a place of an image again in another crop, and how well one that was not trained does.

    python training/patch_retrieval.py --model outputs/pw_self --dataset cifar10

Of two random crops of each test image (without a test split, of each training image), every patch of the first one that the
second one shows too is looked for among the patches of the second one, by the cosine similarity of the encoder's tokens.
"""

import json
from dataclasses import dataclass, field

from accelerate import PartialState
from accelerate.utils import set_seed
from transformers import AutoImageProcessor, AutoModel, HfArgumentParser

from hf_ssl.data import load_image_data
from hf_ssl.evaluation import patch_retrieval
from hf_ssl.hub import write_results


@dataclass
class PatchRetrievalArguments:
    """What to measure."""

    model: str = field(metadata={"help": "The encoder: a folder that a run has written, or its id on the Hub."})
    dataset: str = field(default="digits", metadata={"help": "The images, as in pretrain.py."})
    max_samples: int | None = field(default=2000, metadata={"help": "Images measured, a random choice."})
    k: list[int] = field(
        default_factory=lambda: [1, 5], metadata={"help": "Nearest patches among which the match counts as found."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the choice, the crops and the untrained encoder."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of a run, whose all_results.json gets the numbers; unset, they are printed."},
    )


def main() -> None:
    (args,) = HfArgumentParser(PatchRetrievalArguments).parse_args_into_dataclasses()
    encoder, processor = AutoModel.from_pretrained(args.model), AutoImageProcessor.from_pretrained(args.model)
    limits = {"max_train_samples": args.max_samples, "max_test_samples": args.max_samples}
    data = load_image_data(args.dataset, **limits, seed=args.seed)
    images, split = (data.train, "train") if data.test is None else (data.test, data.test_name)
    set_seed(args.seed)
    untrained = AutoModel.from_config(encoder.config)
    results: dict[str, float | str] = {"patch_retrieval_split": split}
    for model, ending in ((encoder, ""), (untrained, "_untrained")):
        measured = patch_retrieval(
            model.to(PartialState().device),
            images,
            processor.image_mean,
            processor.image_std,
            k=args.k,
            seed=args.seed,
        )
        for name, value in measured.items():
            if not ending or not name.endswith(("_chance", "_queries")):
                results[name + ending] = value
    if args.output_dir is not None:
        write_results(args.output_dir, results, update=True)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
