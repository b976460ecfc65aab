import io
import shutil

import numpy as np
import pytest
from datasets import Image
from PIL import Image as PILImage

from hf_ssl.data import COPYDAYS_SIZES, PhotoSource, decode_rgb, load_copydays, originals_of

from .helpers import make_folder, picture, save
from .miniatures import make_copydays


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    return make_copydays(tmp_path_factory.mktemp("copydays"))


@pytest.fixture
def copy(miniature, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(miniature, tmp_path / "copydays")


def test_sizes_of_copydays():
    assert sum(COPYDAYS_SIZES.values()) == 157 * 19 + 229
    assert list(COPYDAYS_SIZES)[:4] == ["original", "strong", "jpegqual/3", "jpegqual/5"]
    assert [name for name in COPYDAYS_SIZES if name.startswith("crops")] == [
        f"crops/{percent}" for percent in (10, 15, 20, 30, 40, 50, 60, 70, 80)
    ]


def test_miniature(miniature):
    data = load_copydays(miniature, expected=None)
    assert list(data.blocks) == list(data.positives) == list(COPYDAYS_SIZES)
    assert data.blocks["original"] is data.originals
    names = [f"20{i:02}00.jpg" for i in range(24)]
    for block, copies in data.blocks.items():
        assert copies.features["image"] == Image(decode=False)
        assert [row["image"]["path"] for row in copies] == [str(miniature / name) for name in copies["name"]]
        if block != "strong":
            assert copies["name"][:] == [f"{block}/{name}" for name in names]
            assert data.positives[block] == [[i] for i in range(24)]
    assert data.blocks["strong"]["name"][:4] == [
        f"strong/{name}.jpg" for name in ("200001", "200002", "200101", "200201")
    ]
    assert len(data.blocks["strong"]) == 36
    assert data.positives["strong"] == [[i] for i in range(24) for _ in range(2 - i % 2)]


def test_miniature_is_what_it_says(miniature):
    data = load_copydays(str(miniature), expected=None)
    original = decode_rgb(data.originals[1]["image"])
    half = decode_rgb(data.blocks["crops/50"][1]["image"])
    assert half.width * half.height == pytest.approx(original.width * original.height / 2, rel=0.02)
    worst, best = (decode_rgb(data.blocks[f"jpegqual/{quality}"][1]["image"]) for quality in (3, 75))
    errors = [np.abs(np.asarray(copy, float) - np.asarray(original, float)).mean() for copy in (worst, best)]
    assert errors[0] > 4 * errors[1]
    sizes = [(miniature / f"jpegqual/{quality}/200100.jpg").stat().st_size for quality in (3, 10, 30, 75)]
    assert sizes == sorted(sizes)
    buffer = io.BytesIO()
    PILImage.open(miniature / "original/200100.jpg").save(buffer, "JPEG", quality=3)
    assert abs(len(buffer.getvalue()) - sizes[0]) < 200


def test_miniature_is_the_same_each_time(miniature, tmp_path):
    again = make_copydays(tmp_path)
    first, second = ([path.read_bytes() for path in sorted(root.rglob("*.jpg"))] for root in (miniature, again))
    assert len(first) == 24 * 19 + 36 and first == second


def test_in_a_photo_source(miniature):
    data = load_copydays(miniature, blocks=["strong"], expected=None)
    strong, originals = PhotoSource(data.blocks["strong"]), PhotoSource(data.originals)
    assert strong[0]["image"].shape[0] == 3 and strong.labels is None
    assert strong.fingerprint() != originals.fingerprint()


def test_some_blocks(copy):
    shutil.rmtree(copy / "jpegqual")
    data = load_copydays(copy, blocks=("crops/10", "strong", "crops/10"), expected=None)
    assert list(data.blocks) == ["crops/10", "strong"] and len(data.originals) == 24
    assert data.originals["name"][0] == "original/200000.jpg"
    data = load_copydays(copy, blocks=["original"], expected=None)
    assert data.blocks["original"] is data.originals and data.positives["original"][23] == [23]


def test_several_originals_of_one_photograph(tmp_path):
    files = ["original/200000.jpg", "original/200001.jpg", "original/200100.jpg"]
    make_folder(tmp_path, {name: i for i, name in enumerate([*files, "strong/200007.jpg", "strong/200102.jpg"])})
    data = load_copydays(tmp_path, blocks=["strong"], expected=None)
    assert data.positives == {"strong": [[0, 1], [2]]}


def test_other_files_are_left_out(copy):
    (copy / "original/Thumbs.db").write_bytes(b"")
    save(picture(8, 8), copy / "original/200000.png")
    (copy / "original/._200000.jpg").write_bytes(b"as macOS leaves them")
    assert len(load_copydays(copy, expected=None).originals) == 24


def test_expected_sizes(miniature):
    expected = {"original": 24, "strong": 36, "jpegqual/3": 24}
    data = load_copydays(miniature, blocks=["strong", "jpegqual/3", "crops/80"], expected=expected)
    assert list(data.blocks) == ["strong", "jpegqual/3", "crops/80"]
    with pytest.raises(ValueError) as caught:
        load_copydays(miniature, blocks=["strong", "crops/80"])
    wrong = "original has 24, not 157; strong has 36, not 229; crops/80 has 24, not 157"
    assert f"have a wrong number of files *.jpg: {wrong}. Get the missing files" in str(caught.value)
    assert str(miniature) in str(caught.value)
    with pytest.raises(ValueError) as caught:
        load_copydays(miniature)
    message = str(caught.value)
    assert "jpegqual/8 has 24, not 157; and 15 more. Get the missing files" in message
    assert message.endswith("allow other counts (`expected=None`, --other_counts true).")
    assert message.count("has 24, not 157") == 4 and len(message) < 600


def test_as_many_as_copydays_has(tmp_path):
    for block, size in COPYDAYS_SIZES.items():
        (tmp_path / block).mkdir(parents=True)
        for i in range(size):
            name = f"2{i % 157:03}{i // 157 if block == 'strong' else 0:02}.jpg"
            (tmp_path / block / name).touch()
    data = load_copydays(tmp_path)
    assert {name: len(copies) for name, copies in data.blocks.items()} == COPYDAYS_SIZES
    assert data.positives["crops/80"][156] == [156] and data.positives["strong"][:4] == [[0], [0], [1], [1]]


def test_unknown_blocks(miniature):
    with pytest.raises(ValueError, match="`blocks` names 'crops/11', 'weak'; give some of original, strong, jpeg"):
        load_copydays(miniature, blocks=["crops/11", "strong", "weak"])
    with pytest.raises(ValueError, match="`blocks` names nothing; give some of"):
        load_copydays(miniature, blocks=[])


def test_missing_blocks(copy):
    for block in ("strong", "jpegqual/8"):
        shutil.rmtree(copy / block)
    with pytest.raises(
        FileNotFoundError,
        match=r"lacks strong, jpegqual/8; put these folders .* `blocks` \(--blocks\) among those .*crops/80",
    ):
        load_copydays(copy, expected=None)
    shutil.rmtree(copy / "original")
    with pytest.raises(FileNotFoundError, match="lacks original; .* original is needed in any case"):
        load_copydays(copy, blocks=["crops/10"], expected=None)
    with pytest.raises(FileNotFoundError, match=r"there \(none\)"):
        load_copydays(copy / "nothing", blocks=["crops/10"])


def test_empty_blocks(copy):
    for block in ("original", "crops/15"):
        shutil.rmtree(copy / block)
        (copy / block).mkdir()
    # Other counts are allowed here, and would be no remedy.
    with pytest.raises(
        ValueError, match="original has none; crops/15 has none. Get the missing .* does not belong there.$"
    ):
        load_copydays(copy, expected=None)


def test_copies_that_do_not_fit_the_originals(copy):
    (copy / "jpegqual/8/200500.jpg").unlink()
    with pytest.raises(ValueError, match="jpegqual/8 has 23 images and original has 24; every original must have one"):
        load_copydays(copy, expected=None)
    shutil.copy(copy / "jpegqual/8/200600.jpg", copy / "jpegqual/8/200601.jpg")
    with pytest.raises(ValueError, match="Image 5 of jpegqual/8 is 200600.jpg, but that of original is 200500.jpg"):
        load_copydays(copy, expected=None)
    (copy / "jpegqual/8/200601.jpg").rename(copy / "jpegqual/8/200509.jpg")
    assert load_copydays(copy, expected=None).positives["jpegqual/8"][5] == [5]


def test_copies_whose_names_begin_alike(tmp_path):
    originals = {f"original/photo_{i}.jpg": i for i in range(4)}
    make_folder(tmp_path, originals | {f"crops/10/photo_{i}.jpg": i for i in (0, 1, 3, 4)})
    with pytest.raises(ValueError, match="Image 2 of crops/10 is photo_3.jpg, but that of original is photo_2.jpg"):
        load_copydays(tmp_path, blocks=["crops/10"], expected=None)


def test_strong_copies_without_originals(copy):
    for i in range(3):
        shutil.copy(copy / "strong/200001.jpg", copy / f"strong/99990{i}.jpg")
    with pytest.raises(
        ValueError, match=r"3 images of strong have no original .* \(999900.jpg, 999901.jpg, 999902.jpg\)"
    ):
        load_copydays(copy, expected=None)


def test_originals_by_their_names():
    originals = ["200000.jpg", "200100.jpg", "200200.jpg"]
    assert originals_of("jpegqual/3", originals, originals) == [[0], [1], [2]]
    assert originals_of("original", ["a", "b", "c"], originals) == [[0], [1], [2]]
    strong = ["200005.jpg", "200104.jpg", "200105.jpg", "200309.jpg"]
    assert originals_of("strong", strong, originals) == [[0], [1], [1], []]
    with pytest.raises(ValueError, match="crops/10 has 2 images and original has 3"):
        originals_of("crops/10", originals[:2], originals)
