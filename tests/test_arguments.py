"""Configurations made of several views: flat on the command line and in recipes, nested in Python."""

import dataclasses
import sys
import types
from dataclasses import dataclass, field
from typing import Literal

import pytest

from hf_ssl import arguments
from hf_ssl.arguments import PretrainArguments, flat_arguments, flat_values, from_flat_values, parse_with_recipe
from hf_ssl.help import documented
from hf_ssl.models.relvit import RelViTViewsConfig
from training import finetune, pretrain


@documented
@dataclass
class ToyView:
    """
    Args:
        size (`int`, *optional*, defaults to 32):
            Side of the view.
        scale (`list[float]`, *optional*, defaults to `[0.08, 1.0]`):
            Limits of the area.
        crop (`str`, *optional*, defaults to `"random"`):
            `"random"` or `"center"`.
        sharpen (`bool`, *optional*, defaults to `True`):
            Whether edges are sharpened.
        blur (`float`, *optional*, defaults to 0.0):
            Probability of a blur.
        radius (`float`, *optional*):
            Radius of the blur, at most 50% of the size.
    """

    size: int = 32
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    crop: Literal["random", "center"] = "random"
    sharpen: bool = True
    blur: float = 0.0
    radius: float | None = None

    def __post_init__(self):
        if not 0 <= self.blur <= 1:
            raise ValueError(f"blur={self.blur} is not a probability between 0 and 1.")


@documented
@dataclass
class ToyViews:
    """
    Args:
        global1 ([`ToyView`]):
            The first view.
        local ([`ToyView`]):
            The small view.
        image_mean (`list[float]`, *optional*):
            Mean of each channel.
        canvas (`int`, *optional*):
            Side of the canvas.
    """

    global1: ToyView = field(default_factory=lambda: ToyView(blur=1.0))
    local: ToyView = field(default_factory=lambda: ToyView(size=16, scale=[0.05, 0.4], sharpen=False))
    image_mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    canvas: int | None = None

    def __post_init__(self):
        if self.local.size > self.global1.size:
            raise ValueError(f"local.size={self.local.size} must not exceed global1.size={self.global1.size}.")


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Parse flags and the text of a recipe for a method with these views."""
    config_class = type(
        "ToyConfig", (), {"modes": {"upstream": {"local_blur": 0.25}, "joint": {"local": {"blur": 0.5}}}}
    )
    method = types.SimpleNamespace(title="Toy", config_class=config_class, views_config_class=ToyViews)
    monkeypatch.setattr(arguments, "get_method", lambda name: method)
    monkeypatch.setattr(arguments, "model_arguments", lambda cls: dataclasses.make_dataclass("ToyArguments", []))

    def parse(recipe="seed: 0", *flags):
        (tmp_path / "mine.yaml").write_text(recipe)
        argv = ["--recipe", str(tmp_path / "mine.yaml"), "--output_dir", str(tmp_path), *flags]
        return parse_with_recipe(PretrainArguments, tmp_path, argv)[3]

    return parse


def test_defaults_are_those_of_each_view(parse):
    assert parse() == ToyViews(local=ToyView(size=16, scale=[0.05, 0.4], sharpen=False, blur=0.25))


@pytest.mark.parametrize(
    "recipe",
    [
        "local_scale: [0.1, 0.3]\nlocal_crop: center\nglobal1_sharpen: false\ncanvas: 40\nglobal1_radius: 2",
        "local: {scale: [0.1, 0.3], crop: center}\nglobal1: {sharpen: false, radius: 2}\ncanvas: 40",
        "local: {scale: [0.1, 0.3]}\nlocal_crop: center\nglobal1: {sharpen: false, radius: 2}\ncanvas: 40",
    ],
    ids=["flat", "nested", "both"],
)
def test_recipe(parse, recipe):
    assert parse(recipe) == ToyViews(
        global1=ToyView(blur=1.0, sharpen=False, radius=2.0),
        local=ToyView(size=16, scale=[0.1, 0.3], sharpen=False, crop="center", blur=0.25),
        canvas=40,
    )


def test_flags_win_over_the_recipe_and_the_recipe_over_the_mode(parse):
    views = parse("local: {blur: 0.75}\nglobal1_blur: 0.1", "--global1_blur", "0.2", "--global1_scale", "0.2", "1.0")
    assert views.local.blur == 0.75 and views.global1.blur == 0.2 and views.global1.scale == [0.2, 1.0]
    assert parse("mode: joint").local.blur == 0.5
    assert parse("mode: joint\nlocal_blur: 0.6").local.blur == 0.6
    assert parse("seed: 1", "--no_global1_sharpen").global1.sharpen is False
    assert parse("seed: 1", "--local-sharpen").local.sharpen is True


def test_two_configurations_share_no_list(parse):
    parse().local.scale.append(2.0)
    assert parse().local.scale == [0.05, 0.4]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("local_blr: 0.5", "sets 'local_blr'.*did you mean local_blur"),
        ("local: {blr: 0.5}", "sets 'local_blr'.*did you mean local_blur"),
        ("locl: {blur: 0.5}", "sets 'locl'.*no argument"),
        ("local: 0.5", "sets 'local'.*did you mean local_"),
        ("local_blur: 0.5\nlocal: {blur: 0.5}", "sets 'local_blur' twice"),
        ("local: {blur: 0.5}\nlocal_blur: 0.5", "sets 'local_blur' twice"),
        ("global1: {blur: 1.5}", r"^global1: blur=1\.5 is not a probability"),
        ("local_size: 64", r"^local\.size=64 must not exceed global1\.size=32"),
    ],
)
def test_mistakes_in_a_recipe(parse, recipe, message):
    with pytest.raises(ValueError, match=message):
        parse(recipe)


@pytest.mark.parametrize("flags", [["--local_crop", "top"], ["--local_size", "big"], ["--local_blur"]])
def test_mistakes_on_the_command_line(parse, flags, capsys):
    with pytest.raises(SystemExit):
        parse("seed: 0", *flags)
    assert f"argument {flags[0]}" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^local: blur=1\.5"):
        parse("seed: 0", "--local_blur", "1.5")


def test_help(parse, capsys):
    with pytest.raises(SystemExit):
        parse("seed: 0", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--local_scale" in text and "local: Limits of the area. (default: [0.05, 0.4])" in text
    assert "global1: Radius of the blur, at most 50% of the size. (default: None)" in text
    assert "Mean of each channel. (default: [0.5, 0.5, 0.5])" in text and "--global1 " not in text


def test_views_within_views():
    @dataclass
    class Outer:
        views: ToyViews = field(default_factory=lambda: ToyViews(canvas=3))
        names: list[str] = field(default_factory=list)
        number: int = field(default=0, init=False)

    flat = flat_arguments(Outer)()
    assert flat.views_local_size == 16 and flat.views_canvas == 3 and not hasattr(flat, "number")
    values = vars(flat) | flat_values(Outer, {"views": {"local": {"blur": 2.0}}, "names": ["a"]})
    with pytest.raises(ValueError, match=r"^views: local: blur=2\.0"):
        from_flat_values(Outer, values)
    values["views_local_blur"] = 0.5
    made = from_flat_values(Outer, values)
    assert made.views.local.blur == 0.5 and made.names == ["a"]
    # What comes out is what went in.
    assert flat_values(Outer, {"views": dataclasses.asdict(made.views), "names": ["a"]}) == values


def test_configurations_without_views_keep_their_arguments():
    flat, original = dataclasses.fields(flat_arguments(RelViTViewsConfig)), dataclasses.fields(RelViTViewsConfig)
    for item, expected in zip(flat, original, strict=True):
        assert (item.name, item.type, item.metadata) == (expected.name, expected.type, expected.metadata)
    defaults = vars(flat_arguments(RelViTViewsConfig)())
    assert from_flat_values(RelViTViewsConfig, defaults) == RelViTViewsConfig()


@pytest.mark.parametrize("script", [pretrain, finetune])
def test_revision_of_the_dataset_is_asked_for(script, monkeypatch, tmp_path):
    flags = ["--dataset", "digits", "--dataset_revision", "v2", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["script", *flags])
    with pytest.raises(ValueError, match="`revision='v2'` was given for 'digits', which is not on the Hub"):
        script.main()
