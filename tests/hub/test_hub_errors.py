"""What is said when the Hub does not give a model: one sentence or two, and what to do."""

import json
import re

import httpx2
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)
from transformers import ViTConfig, ViTModel

from hf_ssl.hub import evaluation_processor
from hf_ssl.hub_errors import HubError, HubUnreachableError, clear_errors

from ..hub_server import Hub, run_with_hub, serve_hub


def answer(status: int, message: str, kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    response = httpx2.Response(status, request=httpx2.Request("GET", "https://hub/org/vit/resolve/main/config.json"))
    return kind(f"{status} {message}", response=response, server_message=message)


def raised_from(cause: BaseException) -> OSError:
    """As transformers does it."""
    error = OSError("A long text.")
    error.__cause__ = cause
    return error


def told(error: BaseException) -> OSError | ValueError:
    """What comes out."""
    try:
        with clear_errors("vit cannot be loaded.", "vit"):
            raise error
    except (OSError, ValueError) as clear:
        return clear


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (answer(409, "It exists"), r"The Hub answers 409: It exists\. The name is taken: choose another\."),
        (answer(412, "Changed."), r"The Hub answers 412: Changed\. Somebody else has changed it .*, and try again\."),
        (answer(429, "Too many"), r"The Hub answers 429: Too many\. The Hub is asked too often: try again later\."),
        (answer(503, "Down"), r"The Hub answers 503: Down\. Try again later\."),
        (answer(418, "Teapot"), r"The Hub answers 418: Teapot\."),
        (answer(403, "Disabled", DisabledRepoError), r"The Hub has disabled it\."),
        (answer(404, "No", RemoteEntryNotFoundError), r"It has no config\.json\."),
        (raised_from(answer(503, "Down")), r"The Hub answers 503: Down\. Try again later\."),
        (raised_from(raised_from(answer(401, "No"))), "The Hub does not know your token, or there is none: log in .*"),
    ],
)
def test_answers(error, message):
    """Whoever has wrapped them."""
    clear = told(error)
    assert type(clear) is HubError and clear.__suppress_context__
    assert re.fullmatch(rf"vit cannot be loaded\. {message}", str(clear))


@pytest.mark.parametrize(
    "error",
    [OfflineModeIsEnabled("No"), LocalEntryNotFoundError("No"), httpx2.ConnectError("No"), httpx2.ReadTimeout("No")],
)
def test_no_way_to_the_hub(error, monkeypatch):
    for raised in (error, raised_from(error)):
        assert isinstance(told(raised), HubUnreachableError)
        assert "HF_HUB_OFFLINE is set, so the Hub is not asked: unset it." in str(told(raised))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert f"{constants.ENDPOINT} cannot be reached: check the connection." in str(told(error))


def test_other_errors():
    """What the Hub has no part in keeps its words, and its cause; one that is clear already is left alone."""
    cause = ValueError("Weights are missing.")
    assert str(told(cause)) == "vit cannot be loaded. Weights are missing." and told(cause).__cause__ is cause
    clear = HubError("Clear.")
    assert told(clear) is clear
    with pytest.raises(KeyError):
        told(KeyError("a mistake of the program"))


READER = """
import json, os, runpy, sys
from types import SimpleNamespace
from hf_ssl import cli, get_method
from hf_ssl.evaluation import load_encoder
from hf_ssl.models.classification import ClassifierForTraining
from hf_ssl.pretrained import pretrained_config
finetune = SimpleNamespace(**runpy.run_module("hf_ssl.scripts.finetune"))

def command(*arguments):
    sys.argv = ["hf-ssl", *arguments]
    cli.main()

def reason(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except (ValueError, OSError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "done"

def ways(model, revision=None):
    given = ["--revision", revision] if revision else []
    arguments = SimpleNamespace(model=model, revision=revision, image_size=None, dropout=None, attention_dropout=None)
    return {
        "load_encoder": reason(load_encoder, model, revision=revision),
        "teacher": reason(load_encoder, model, revision=revision, branch="teacher"),
        "train on": reason(pretrained_config, model, revision, get_method("relvit")),
        "finetune": reason(finetune.encoder_config, arguments),
        "load into a classifier": reason(ClassifierForTraining.load_encoder, None, model, revision=revision),
        "knn": reason(command, "knn", "--model", model, *given),
    }

MODELS = [("org/none", None), ("org/secret", None), ("org/gated", None), ("org/open", "v9"), ("outputs/a/b", None)]
found = {}
for who, token in (("stranger", ""), ("bob", os.environ["BOB"]), ("wrong token", "hf_" + "x" * 34)):
    os.environ["HF_TOKEN"] = token
    found[who] = {model: ways(model, revision) for model, revision in MODELS}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Hub:
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(folder)
    evaluation_processor(16, [0.5] * 3, [0.5] * 3).save_pretrained(folder)
    with serve_hub() as served:
        for name, options in {"open": {}, "secret": {"private": True}, "gated": {"gated": "auto"}}.items():
            served.create_repository(f"org/{name}", folder=folder, **options)
        served.repository("org/open").tags["v1"] = served.repository("org/open").branches["main"]
        yield served


LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
HIDDEN = (
    "There is no folder of this name here, and the Hub shows no repository of this name: check it. If it is private, "
)
GATED = "It is gated: accept its terms at {url}/org/gated "
NO_TOKEN = f"The Hub does not know your token, or there is none: {LOG_IN}."
REASONS = {
    "stranger": {"hidden": f"{HIDDEN}to read it, {LOG_IN}.", "gated": f"{GATED}and {LOG_IN}."},
    "bob": {
        "hidden": f"{HIDDEN}the account of your token may not read it.",
        "gated": f"{GATED}with the account of your token.",
    },
    "wrong token": {"hidden": NO_TOKEN, "gated": NO_TOKEN, "revision": NO_TOKEN},
}


@pytest.fixture(scope="module")
def found(hub, tmp_path_factory) -> dict[str, dict[str, dict[str, str]]]:
    """What each account is told about each model, by each way to load it: one process asks for all of it."""
    done = run_with_hub(hub, READER, tmp_path_factory.mktemp("reader"), BOB=hub.tokens["bob"])
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("who", REASONS)
@pytest.mark.parametrize(
    ("model", "kind"),
    [("org/none", "hidden"), ("org/secret", "hidden"), ("org/gated", "gated"), ("org/open", "revision")],
)
def test_models_that_the_hub_does_not_give(hub, found, who, model, kind):
    """Every way to load one gives the same reason; the command in one sentence or two."""
    reason = REASONS[who].get(kind, "It has no branch, tag or commit v9; there are main, v1.").format(url=hub.url)
    for way, message in found[who][model].items():
        assert message.startswith("SystemExit: " if way == "knn" else "HubError: "), way
        assert model in message and message.endswith(reason), way


def test_neither_a_folder_nor_an_id(found):
    for messages in found.values():
        for message in messages["outputs/a/b"].values():
            assert message.endswith("outputs/a/b is neither a folder here nor an id of the Hub, such as org/name.")


def test_upload_that_breaks_off():
    """huggingface_hub raises a RuntimeError from what happened; others are not the Hub's."""
    what = clear_errors("org/vit was not pushed.", "org/vit")
    with pytest.raises(HubUnreachableError, match="org/vit was not pushed"), what:
        raise RuntimeError("Error while uploading") from httpx2.ConnectError("No")
    with pytest.raises(RuntimeError, match="^a bug$"), clear_errors("org/vit was not pushed.", "org/vit"):
        raise RuntimeError("a bug")
