"""Put an encoder, a classifier or a converted model on the Hub.

    python training/push.py outputs/quickstart org/relvit-digits --dry_run
    python training/push.py outputs/quickstart org/relvit-digits --private --tag v1

The folder is looked through first: a file that is missing, damaged or a pickle, a token, or a path of this machine stops it.
Then all that has changed goes there in one commit. Checkpoints and logs stay here. What is pushed, and what is deleted
there, is told in docs/hub.md.
"""

import sys
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from hf_ssl.hub import push_folder


@dataclass
class PushArguments:
    """How to push."""

    private: bool = field(
        default=False, metadata={"help": "Make a new repository private; one that is there must be private already."}
    )
    tag: str | None = field(default=None, metadata={"help": "A new tag for the commit, such as v1."})
    revision: str | None = field(
        default=None, metadata={"help": "The branch to push to, made from main if there is none; unset, main."}
    )
    commit_message: str = field(default="Upload by hf-ssl push", metadata={"help": "Message of the commit."})
    dry_run: bool = field(
        default=False, metadata={"help": "Check everything, and tell what would be done, without doing it."}
    )


def main() -> None:
    parser = HfArgumentParser(PushArguments, description=__doc__)
    parser.add_argument("folder", help="The folder that a run or a conversion has left.")
    parser.add_argument("name", help="The repository: org/name, or name for one of your own; it is made if need be.")
    args, places = parser.parse_args_into_dataclasses()
    try:
        report = push_folder(
            places.folder,
            places.name,
            private=args.private or None,
            tag=args.tag,
            revision=args.revision,
            commit_message=args.commit_message,
            dry_run=args.dry_run,
        )
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(report)


if __name__ == "__main__":
    main()
