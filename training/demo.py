"""A page for visitors on this machine: retrieval, patch matching, and a look inside of any encoder.

    hf-ssl demo --model outputs/quickstart
    hf-ssl demo --model outputs/pw_self facebook/dino-vits16 --dataset path/to/photos --port 8080

Whoever can open the page may have photos of their own looked at, and may name any public encoder of the Hub (unless
--allow_hub_ids false); no code of such a repository is run. Features of the dataset are computed when they are first needed,
and kept. Ctrl-C ends it, and deletes what was uploaded.
"""

import os
import signal
import sys
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from hf_ssl.arguments import DataArguments
from hf_ssl.data import load_image_data


@dataclass(kw_only=True)
class DemoArguments(DataArguments):
    """What the page shows, and to whom."""

    model: list[str] = field(
        metadata={
            "help": "Encoders: folders, or ids of the Hub, that AutoModel loads. The first is shown at the beginning."
        }
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether code that lies beside the weights of --model may be run."}
    )
    allow_hub_ids: bool = field(
        default=True, metadata={"help": "Whether visitors may name other encoders of the Hub."}
    )
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to listen at; 0.0.0.0 lets others of the network see the page."},
    )
    port: int | None = field(default=None, metadata={"help": "Port; unset, the first free one from 7860 on."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where features are kept; unset, hf_ssl/features in the folder HF_HOME."}
    )


def main() -> None:
    (args,) = HfArgumentParser(DemoArguments, description=__doc__).parse_args_into_dataclasses()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what was uploaded is deleted then, too
    from hf_ssl.demo import Collection, EncoderShelf, build_demo, folders, launch  # which needs gradio

    try:
        shelf = EncoderShelf(args.model, trust_remote_code=args.trust_remote_code, allow_hub_ids=args.allow_hub_ids)
        data = load_image_data(
            args.dataset,
            max_train_samples=args.max_train_samples,
            skip_bad_images=args.skip_bad_images,
            revision=args.dataset_revision,
        )
        shelf.load(shelf.names[0])  # what is wrong with it shows at once
        page = build_demo(shelf, Collection(data, cache_dir=args.cache_dir))
        launch(page, server_name=args.host, server_port=args.port, prevent_thread_lock=True)
        page.block_thread()
    except (ValueError, OSError, OverflowError) as error:  # the last, of ports that there are not
        sys.exit(f"hf-ssl demo: {error}")
    except (KeyboardInterrupt, SystemExit):
        pass
    # Threads may be computing. They cannot be stopped, and Python would end beneath them with a crash.
    folders.delete_all()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
