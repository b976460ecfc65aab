import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from datasets import Image
from PIL import Image as PILImage

from hf_ssl.data import (
    ImageData,
    ImageError,
    PhotoSource,
    PlainPickleError,
    find_images,
    load_image_data,
    load_pairs,
    load_revisited,
    same_class_task,
)
from hf_ssl.data import retrieval as retrieval_module

from .helpers import make_dataset, make_folder, picture, save
from .miniatures import make_revisited


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(retrieval_module.logger, "warning", messages.append)
    return messages


def paths(dataset):
    return [row["image"]["path"] for row in dataset]


# Revisited Oxford and Paris


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    return make_revisited(tmp_path_factory.mktemp("revisited"))


def annotation(**changes):
    return {"bbx": [1.5, 2, 20, 10.5], "easy": [1, 4], "hard": [6, 3], "junk": [0, 2]} | changes


def write_benchmark(folder, name="mini", imlist=None, qimlist=("q0", "q1"), gnd=None):
    """Pictures of 24x12 pixels, eight in the database."""
    imlist = [f"im{i}" for i in range(8)] if imlist is None else imlist
    gnd = [annotation(), annotation(easy=[], hard=[7], junk=[])] if gnd is None else gnd
    for i, image in enumerate([*imlist, *qimlist]):
        save(picture(12, 24, i), folder / name / f"jpg/{image}.jpg")
    content = {"imlist": list(imlist), "qimlist": list(qimlist), "gnd": gnd}
    path = folder / name / f"gnd_{name}.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def write_annotations(folder, changes):
    """Only the pickle: it is looked at before the images are."""
    content = {
        "imlist": [f"im{i}" for i in range(8)],
        "qimlist": ["q0", "q1"],
        "gnd": [annotation(), annotation()],
    }
    (folder / "mini").mkdir()
    path = folder / "mini/gnd_mini.pkl"
    content = {key: value for key, value in (content | changes).items() if value is not None}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def test_revisited_by_hand(tmp_path):
    write_benchmark(tmp_path)
    task = load_revisited(tmp_path, "mini")
    assert task.name == "mini" and list(task.relevance) == ["easy", "medium", "hard"]
    easy, medium, hard = task.relevance.values()
    assert easy.positives == [[1, 4], []] and easy.junk == [[0, 2, 6, 3], [7]]
    assert medium.positives == [[1, 4, 6, 3], [7]] and medium.junk == [[0, 2], []]
    assert hard.positives == [[6, 3], [7]] and hard.junk == [[0, 2, 1, 4], []]
    assert task.boxes == [(1.5, 2.0, 20.0, 10.5)] * 2
    assert task.database["name"][:] == [f"jpg/im{i}.jpg" for i in range(8)]
    assert task.queries["name"][:] == ["jpg/q0.jpg", "jpg/q1.jpg"]
    assert paths(task.queries) == [str(tmp_path / f"mini/jpg/q{i}.jpg") for i in range(2)]
    assert task.database.features["image"] == Image(decode=False)


def test_revisited_miniature(miniature):
    task = load_revisited(str(miniature.parent), "miniature")
    assert (len(task.database), len(task.queries)) == (84, 12)
    names = [Path(name).stem for name in task.database["name"]]
    for i, query in enumerate(task.queries["name"]):
        landmark = Path(query).stem.removesuffix("_query")
        found = {
            setup: (
                sorted(names[place] for place in relevance.positives[i]),
                sorted(names[place] for place in relevance.junk[i]),
            )
            for setup, relevance in task.relevance.items()
        }
        easy, hard = ([f"{landmark}_{label}_{j}" for j in range(3)] for label in ("easy", "hard"))
        junk = [f"{landmark}_junk_0"]
        assert found == {"easy": (easy, hard + junk), "medium": (easy + hard, junk), "hard": (hard, easy + junk)}


def test_miniature_queries_show_their_landmarks_in_their_boxes(miniature):
    task = load_revisited(miniature.parent, "miniature")
    source = PhotoSource(task.queries)
    sizes = {tuple(source[i]["image"].shape) for i in range(len(source))}
    assert len(sizes) > 1
    for i, (left, top, right, bottom) in enumerate(task.boxes):
        _, height, width = source[i]["image"].shape
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert (right - left) * (bottom - top) < height * width


def test_miniature_is_the_same_each_time(miniature, tmp_path):
    again = make_revisited(tmp_path)
    first, second = ([path.read_bytes() for path in sorted(root.rglob("*.*"))] for root in (miniature, again))
    assert len(first) == 84 + 12 + 1 and first == second


def test_revisited_in_a_photo_source(miniature):
    task = load_revisited(miniature.parent, "miniature")
    database, queries = PhotoSource(task.database), PhotoSource(task.queries)
    assert database.labels is None and database[0]["image"].dtype.is_floating_point is False
    assert len({database.fingerprint(), queries.fingerprint(), database.fingerprint()}) == 2


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_revisited_of_arrays(tmp_path, protocol):
    path = write_benchmark(tmp_path)
    content = {
        "imlist": np.array([f"im{i}" for i in range(8)]),
        "qimlist": ("q0", "q1"),
        "gnd": (
            {
                "bbx": np.array([0, 0, 24, 12]),
                "easy": np.array([1, 4]),
                "hard": [np.int64(6)],
                "junk": np.array([]),
            },
            annotation(),
        ),
        "more": 1,
    }
    path.write_bytes(pickle.dumps(content, protocol))
    task = load_revisited(tmp_path, "mini")
    medium = task.relevance["medium"]
    assert medium.positives == [[1, 4, 6], [1, 4, 6, 3]] and medium.junk == [[], [0, 2]]
    assert {type(place) for places in medium.positives for place in places} == {int}
    assert task.boxes[0] == (0.0, 0.0, 24.0, 12.0) and {type(name) for name in task.database["name"]} == {str}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"gnd": None}, "its dictionary lacks gnd"),
        ({"imlist": None, "qimlist": None}, "its dictionary lacks imlist, qimlist"),
        ({"imlist": "im0"}, "`imlist` is not a list of names"),
        ({"qimlist": ["q0", 5]}, "`qimlist` is not a list of names"),
        ({"qimlist": [b"q0", b"q1"]}, "`qimlist` is not a list of names"),
        ({"imlist": []}, "`imlist` is empty"),
        ({"imlist": ["im0", "../im1"]}, "`imlist` has '../im1', which is no name of a file in jpg/"),
        ({"imlist": ["im0", "/etc/im1"]}, "`imlist` has '/etc/im1'"),
        ({"imlist": ["im0", ""]}, "`imlist` has '', which"),
        ({"imlist": ["im0", "a\0b"]}, r"`imlist` has 'a\\x00b'"),
        ({"imlist": ["im0", "im1", "im0", "im1"]}, r"`imlist` has 2 names more than once \('im0', 'im1'\)"),
        ({"qimlist": ["q0", "q0"]}, r"`qimlist` has 1 names more than once \('q0'\)"),
        ({"gnd": {"q0": {}}}, "`gnd` is a dict, not a list"),
        ({"gnd": [annotation()]}, "`gnd` has 1 entries for the 2 queries of `qimlist`"),
        ({"gnd": [annotation(), [1]]}, r"`gnd\[1\]` is a list, not a dictionary"),
        ({"gnd": [annotation(), {"bbx": [0, 0, 1, 1], "hard": []}]}, r"`gnd\[1\]` lacks easy, junk"),
        ({"gnd": [annotation(), {"easy": [], "hard": [], "junk": []}]}, r"`gnd\[1\]` lacks bbx"),
        ({"gnd": [annotation(), annotation(easy=3)]}, r"`gnd\[1\]\['easy'\]` is not a list of places"),
        ({"gnd": [annotation(), annotation(easy=np.zeros((1, 2), int))]}, "is not a list of places"),
        ({"gnd": [annotation(), annotation(hard=[3.0])]}, r"`gnd\[1\]\['hard'\]` has a float, not only whole numbers"),
        ({"gnd": [annotation(), annotation(hard=[True])]}, "has a bool"),
        ({"gnd": [annotation(), annotation(hard=[[3]])]}, "has a list"),
        (
            {"gnd": [annotation(), annotation(junk=[8])]},
            r"`gnd\[1\]\['junk'\]` has 8, but the places in `imlist` are 0 to 7",
        ),
        ({"gnd": [annotation(hard=[-1]), annotation()]}, r"`gnd\[0\]\['hard'\]` has -1, but"),
        ({"gnd": [annotation(), annotation(hard=[6, 4])]}, r"image 4 is in `easy` and again in `gnd\[1\]\['hard'\]`"),
        ({"gnd": [annotation(), annotation(junk=[6])]}, r"image 6 is in `hard` and again in `gnd\[1\]\['junk'\]`"),
        ({"imlist": ["im0", "a" * 252]}, "`imlist` has a name of 252 bytes .* at most 251 before .jpg"),
        ({"qimlist": ["q0", "é" * 126]}, "`qimlist` has a name of 252 bytes"),
        ({"qimlist": ["q0", "../" + "é" * 5000]}, "which is no name of a file in jpg/"),
        ({"gnd": [annotation(bbx=[1, 2, 3]), annotation()]}, r"`gnd\[0\]\['bbx'\]` is not four numbers"),
        ({"gnd": [annotation(bbx="1234"), annotation()]}, r"`gnd\[0\]\['bbx'\]` is not four numbers"),
        ({"gnd": [annotation(bbx=[1, 2, "3", 4]), annotation()]}, r"`gnd\[0\]\['bbx'\]` is not four numbers"),
        ({"gnd": [annotation(bbx=[5, 2, 5, 9]), annotation()]}, r"is \(5.0, 2.0, 5.0, 9.0\), which is no box"),
        ({"gnd": [annotation(bbx=[1, 9, 5, 2]), annotation()]}, "which is no box: left must be less than right"),
        ({"gnd": [annotation(bbx=[1, 2, float("nan"), 9]), annotation()]}, "which is no box"),
        ({"gnd": [annotation(bbx=[1, 2, float("inf"), 9]), annotation()]}, "which is no box"),
        (
            {"qimlist": ["q0", "im3"]},
            r"query 'im3' is also image 3 of `imlist`, .* or add it to `gnd\[1\]\['junk'\]`",
        ),
    ],
)
def test_revisited_wrong_annotations(tmp_path, changes, message):
    path = write_annotations(tmp_path, changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_revisited(tmp_path, "mini")
    assert str(caught.value).startswith(f"{str(path)!r} cannot be used: ")
    assert "Take the file that the authors of the benchmark publish" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_revisited_place_that_is_too_long_to_show(tmp_path):
    write_annotations(tmp_path, {"gnd": [annotation(), annotation(easy=[10**5000])]})
    with pytest.raises(PlainPickleError, match="an integer of more than the 64 bits allowed"):
        load_revisited(tmp_path, "mini")


def test_revisited_name_as_long_as_a_file_can_have(tmp_path):
    write_benchmark(tmp_path, qimlist=("q0", "a" * 251))
    assert load_revisited(tmp_path, "mini").queries["name"][1] == f"jpg/{'a' * 251}.jpg"


def test_revisited_place_twice_in_one_list(tmp_path, warnings):
    write_benchmark(tmp_path, gnd=[annotation(easy=[4, 1, 4, 4]), annotation(junk=[np.int64(2), 0, 2])])
    task = load_revisited(tmp_path, "mini")
    assert task.relevance["easy"].positives == [[4, 1], [1, 4]] and task.relevance["medium"].junk == [[0, 2], [2, 0]]
    assert len(warnings) == 1 and "repeats images within 2 of its lists" in warnings[0]
    assert "gnd[0]['easy']" in warnings[0] and "gnd[1]['junk']" in warnings[0]


@pytest.mark.parametrize("relative", [False, True])
def test_revisited_in_a_folder_that_is_a_link(tmp_path, monkeypatch, relative):
    write_benchmark(tmp_path / "data")
    (tmp_path / "data/mini").rename(tmp_path / "data/oxford")
    (tmp_path / "store").mkdir()
    (tmp_path / "store/mini").symlink_to(tmp_path / "data/oxford")
    monkeypatch.chdir(tmp_path)
    task = load_revisited("store" if relative else tmp_path / "store", "mini")
    assert task.name == "mini" and task.queries["name"][:] == ["jpg/q0.jpg", "jpg/q1.jpg"]
    assert all(Path(path).is_file() for path in paths(task.queries) + paths(task.database))
    assert Path(paths(task.queries)[0]).resolve() == tmp_path / "data/oxford/jpg/q0.jpg"
    assert PhotoSource(task.queries)[0]["image"].shape == (3, 12, 24)


def save_rotated(file, orientation, size=(24, 12)):
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    PILImage.new("RGB", size).save(file, exif=exif)


def test_revisited_query_that_exif_rotates(tmp_path, warnings):
    path = write_benchmark(tmp_path, gnd=[annotation(bbx=[1, 1, 9, 9]), annotation(bbx=[1, 1, 9, 9])])
    save_rotated(path.parent / "jpg/q0.jpg", 1)
    load_revisited(tmp_path, "mini")
    assert warnings == []
    save_rotated(path.parent / "jpg/q1.jpg", 6)
    load_revisited(tmp_path, "mini")
    assert len(warnings) == 1
    assert "photos of 1 queries are rotated by their EXIF orientation ('jpg/q1.jpg')" in warnings[0]
    assert "--crop_queries would cut out the wrong part" in warnings[0]
    save_rotated(path.parent / "jpg/q0.jpg", 3)
    load_revisited(tmp_path, "mini")
    assert "photos of 2 queries" in warnings[1]


def test_revisited_box_outside_of_a_photo_that_exif_rotates(tmp_path):
    path = write_benchmark(tmp_path, gnd=[annotation(), annotation(bbx=[14, 1, 20, 9])])
    save_rotated(path.parent / "jpg/q1.jpg", 6)
    with pytest.raises(ValueError, match="which has 12x24 pixels when rotated by its EXIF orientation; check that"):
        load_revisited(tmp_path, "mini")


def test_revisited_query_in_the_database_is_fine_as_junk(tmp_path):
    write_benchmark(tmp_path, qimlist=("q0", "im2"), gnd=[annotation(), annotation(junk=[2])])
    assert load_revisited(tmp_path, "mini").relevance["easy"].junk[1] == [2, 6, 3]


@pytest.mark.parametrize("content, kind", [([1], "list"), ("text", "str"), (np.arange(3), "ndarray")])
def test_revisited_other_content(tmp_path, content, kind):
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini/gnd_mini.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=f"it holds a {kind}, not a dictionary with the keys imlist, qimlist, gnd"):
        load_revisited(tmp_path, "mini")


def test_revisited_malicious_pickle(tmp_path):
    sentinel = tmp_path / "sentinel"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {sentinel}",)

    path = write_benchmark(tmp_path)
    path.write_bytes(pickle.dumps({"imlist": Evil(), "qimlist": [], "gnd": []}))
    with pytest.raises(PlainPickleError, match=f"gnd_mini.pkl': it asks for `{os.system.__module__}.system`"):
        load_revisited(tmp_path, "mini")
    assert not sentinel.exists()


@pytest.mark.parametrize("name, num_images", [("roxford5k", 4993), ("rparis6k", 6322)])
def test_revisited_sizes_of_the_benchmarks(tmp_path, name, num_images):
    path = write_benchmark(tmp_path, name)
    with pytest.raises(
        ValueError, match=f"{name} has {num_images:,} images in the database and 70 queries, but there are 8 and 2"
    ):
        load_revisited(tmp_path, name)
    content = {
        "imlist": [f"im{i}" for i in range(num_images)],
        "qimlist": [f"q{i}" for i in range(70)],
        "gnd": [annotation()] * 70,
    }
    path.write_bytes(pickle.dumps(content, protocol=2))
    # The annotations are right, and of the images ten are there.
    with pytest.raises(FileNotFoundError, match=f"{num_images + 70 - 10} images of {name!r} are missing"):
        load_revisited(tmp_path, name)


def test_revisited_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="gnd_mini.pkl'; give the folder that holds 'mini', with"):
        load_revisited(tmp_path, "mini")
    path = write_benchmark(tmp_path)
    for name in ("im1", "q1"):
        (path.parent / f"jpg/{name}.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"2 images of 'mini' are missing in .*jpg' \('jpg/im1.jpg', 'jpg/q1.jpg'\); put the"
    ):
        load_revisited(tmp_path, "mini")
    for i in range(2, 8):
        (path.parent / f"jpg/im{i}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"8 images .* 'jpg/im5.jpg', …\)"):
        load_revisited(tmp_path, "mini")


@pytest.mark.parametrize("box", [[24, 0, 30, 5], [0, 12, 5, 20], [-5, 0, 0, 5], [0, -5, 5, -1]])
def test_revisited_box_outside_of_its_image(tmp_path, box):
    write_benchmark(tmp_path, gnd=[annotation(), annotation(bbx=box)])
    with pytest.raises(ValueError, match=r"query 'jpg/q1.jpg' lies outside of the image, which has 24x12 pixels"):
        load_revisited(tmp_path, "mini")


def test_revisited_box_beyond_its_image(tmp_path, warnings):
    write_benchmark(tmp_path, gnd=[annotation(bbx=[-0.6, 0, 24.4, 12.7]), annotation(bbx=[3, 2, 26, 9])])
    task = load_revisited(tmp_path, "mini")
    assert task.boxes == [(-0.6, 0.0, 24.4, 12.7), (3.0, 2.0, 26.0, 9.0)]
    assert len(warnings) == 1 and "boxes of 1 queries reach beyond their images ('jpg/q1.jpg')" in warnings[0]


def test_revisited_query_that_cannot_be_read(tmp_path):
    path = write_benchmark(tmp_path)
    (path.parent / "jpg/q1.jpg").write_bytes(b"no image")
    # Its place counts, so that leaving it out is no remedy here.
    with pytest.raises(ImageError, match=r"q1.jpg.* Repair or replace the file\. Images of a dataset for training"):
        load_revisited(tmp_path, "mini")


# Pairs


@pytest.fixture
def photos(tmp_path):
    return make_folder(tmp_path / "photos", {"b.png": 0, "a.jpg": 1, "trip/c.png": 2, "trip/d e.png": 3})


def test_pairs_have_the_name_of_their_table(photos, monkeypatch):
    write_csv(photos, "query,positive\na.jpg,b.png\n").rename(photos / "by day.v2.csv")
    assert load_pairs(photos, photos / "by day.v2.csv").name == "by day.v2"
    monkeypatch.chdir(photos)
    assert load_pairs(".", "by day.v2.csv").name == "by day.v2"


def write_csv(folder, text, encoding="utf-8"):
    path = folder.parent / "pairs.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_pairs(photos):
    table = write_csv(photos, "query,positive\ntrip/c.png,a.jpg\nb.png,trip/d e.png\ntrip/c.png,b.png\n")
    task = load_pairs(photos, table)
    assert task.database["name"][:] == ["a.jpg", "b.png", "trip/c.png", "trip/d e.png"]
    assert task.queries["name"][:] == ["trip/c.png", "b.png"]
    assert paths(task.queries) == [str(photos / "trip/c.png"), str(photos / "b.png")]
    assert list(task.relevance) == ["all"] and task.boxes is None and task.name == "pairs"
    assert task.relevance["all"].positives == [[0, 1], [3]]
    assert task.relevance["all"].junk == [[2], [1]]
    assert PhotoSource(task.queries)[0]["image"].shape == (3, 8, 8)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_pairs_as_spreadsheets_write_them(photos, encoding):
    text = 'positive,query\r\n"a.jpg",./trip//c.png\r\n\r\n"trip/d e.png",b.png\r\n'
    task = load_pairs(str(photos), str(write_csv(photos, text, encoding)))
    assert task.queries["name"][:] == ["trip/c.png", "b.png"]
    assert task.relevance["all"].positives == [[0], [3]]


@pytest.mark.parametrize(
    "text, kind, message",
    [
        ("", ValueError, r"has the columns \[\]; its first line must be query,positive"),
        ("a.jpg,b.png\n", ValueError, r"has the columns \['a.jpg', 'b.png'\]"),
        ("query;positive\na.jpg;b.png\n", ValueError, r"has the columns \['query;positive'\]"),
        ("query,positive,junk\na.jpg,b.png,trip/c.png\n", ValueError, r"'junk'\]; its first line"),
        ("query,query\na.jpg,b.png\n", ValueError, "has the columns"),
        ("query,positive\n\n", ValueError, "has no rows; write a line for each pair"),
        ("query,positive\na.jpg,b.png\na.jpg\n", ValueError, "Line 3 of .* does not hold two paths"),
        ("query,positive\na.jpg,\n", ValueError, "Line 2 of .* does not hold two paths"),
        ("query,positive\na.jpg,b.png,trip/c.png\n", ValueError, "Line 2 of .* does not hold two paths"),
        ("query,positive\na.jpg,none.png\n", FileNotFoundError, "Line 2 of .* names 'none.png', but .* no such file"),
        ("query,positive\n\nA.jpg,b.png\n", FileNotFoundError, "Line 3 of .* names 'A.jpg'"),
        ("query,positive\na.jpg,a\0.png\n", FileNotFoundError, r"names 'a\\x00.png'"),
        (f"query,positive\na.jpg,{'a' * 300}.png\n", FileNotFoundError, "names 'aaa.* no such file"),
        ("query,positive\na.jpg,../pairs.csv\n", ValueError, "'../pairs.csv', which is not in the folder; give paths"),
        ("query,positive\ntrip/../a.jpg,b.png\n", ValueError, "'trip/../a.jpg', which is not in the folder"),
        ("query,positive\n/etc/passwd,b.png\n", ValueError, "'/etc/passwd', which is not in the folder"),
        ("query,positive\na.jpg,notes.txt\n", ValueError, "'notes.txt', which is not among the 4 images found"),
        ("query,positive\na.jpg,.hidden.png\n", ValueError, "'.hidden.png', which is not among the 4 images"),
        ("query,positive\na.jpg,trip\n", ValueError, "'trip', which is not among the 4 images"),
        ("query,positive\na.jpg,b.png\nb.png,./b.png\n", ValueError, "Line 3 of .* pairs 'b.png' with itself"),
        ("query,positive\na.jpg,b.png\nb.png,a.jpg\na.jpg,./b.png\n", ValueError, "Line 4 of .* repeats line 2"),
        ('query,positive\na.jpg,"b.png\n', ValueError, "Cannot read .* as a csv: .* Save it as UTF-8, with commas"),
    ],
)
def test_wrong_pairs(photos, text, kind, message):
    (photos / "notes.txt").write_text("notes")
    save(picture(8, 8), photos / ".hidden.png")
    with pytest.raises(kind, match=message) as caught:
        load_pairs(photos, write_csv(photos, text))
    assert type(caught.value) is kind and ("pairs.csv" in str(caught.value))


def test_pairs_files_that_cannot_be_used(photos):
    with pytest.raises(FileNotFoundError, match="pairs.csv'; give a csv with the header query,positive"):
        load_pairs(photos, photos.parent / "pairs.csv")
    with pytest.raises(ValueError, match="Cannot read .* as a csv: 'utf-8' codec .* Save it as UTF-8"):
        load_pairs(photos, write_csv(photos, "query,positive\ncafé.png,a.jpg\n", "latin-1"))
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        load_pairs(photos / "none", write_csv(photos, "query,positive\na.jpg,b.png\n"))


# Classes


def labeled(train_labels, test_labels, **changes):
    def dataset(labels):
        return make_dataset([picture(4, 4, seed) for seed in range(len(labels))], labels)

    fields = {"train": dataset(train_labels), "test": dataset(test_labels), "class_names": None, "num_classes": 3}
    return ImageData(**({"name": "pets", "test_name": "test"} | fields | changes))


def test_same_class():
    data = labeled([1, 0, 1, 2, 0, 1], [2, 1, 1])
    task = same_class_task(data)
    relevance = task.relevance["all"]
    assert task.name == "pets" and task.database is data.train and task.queries is data.test
    assert list(task.relevance) == ["all"] and task.boxes is None
    assert relevance.positives == [[3], [0, 2, 5], [0, 2, 5]] and relevance.junk == [[], [], []]
    assert relevance.positives[1] is relevance.positives[2]
    assert {type(place) for place in relevance.positives[1]} == {int}


def test_same_class_of_digits():
    data = load_image_data("digits")
    relevance = same_class_task(data).relevance["all"]
    train, test = data.train["label"][:], data.test["label"][:]
    for i in (0, 17, 359):
        assert relevance.positives[i] == [place for place, label in enumerate(train) if label == test[i]]


def test_same_class_without_training_images(warnings):
    assert same_class_task(labeled([0, 0], [1, 0, 1])).relevance["all"].positives == [[], [0, 1], []]
    assert len(warnings) == 1 and "1 classes of the test split have no training images (1)" in warnings[0]
    with pytest.raises(ValueError, match="No class of the test split of 'pets' has training images"):
        same_class_task(labeled([0, 0], [1, 2]))


def test_same_class_needs_labels_and_a_test_split():
    with pytest.raises(ValueError, match="'pets' has no labels, so that it is not known what a query should find"):
        same_class_task(labeled([0], [0], train=make_dataset([picture(4, 4)])))
    with pytest.raises(ValueError, match="'pets' has no test split to take the queries from"):
        same_class_task(labeled([0], [0], test=None))


# Folders


def test_find_images(photos):
    make_folder(photos, {"trip/.thumbs/a.png": 0, ".a.png": 1, "__pycache__/b.png": 2, "trip/E.JPG": 3})
    (photos / "notes.txt").write_text("notes")
    found = find_images(photos)
    assert found["name"][:] == ["a.jpg", "b.png", "trip/E.JPG", "trip/c.png", "trip/d e.png"]
    assert paths(found) == [str(photos / name) for name in found["name"]]
    assert found.column_names == ["image", "name"] and found.features["image"] == Image(decode=False)
    assert len(PhotoSource(found).fingerprint()) == 64


def test_find_images_follows_links_once(photos):
    (photos / "trip/loop").symlink_to(photos)
    elsewhere = make_folder(photos.parent / "elsewhere", {"x.png": 0})
    (photos / "linked").symlink_to(elsewhere)
    (photos / "linked_again").symlink_to(elsewhere)
    (photos / "file.png").symlink_to(elsewhere / "x.png")
    expected = ["a.jpg", "b.png", "file.png", "linked/x.png", "trip/c.png", "trip/d e.png"]
    assert find_images(photos)["name"][:] == expected
    (photos.parent / "link").symlink_to(photos)
    assert find_images(photos.parent / "link")["name"][:] == expected


def test_find_images_of_a_relative_or_home_folder(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    expected = paths(find_images(photos))
    assert paths(find_images("photos")) == expected
    monkeypatch.setenv("HOME", str(photos.parent))
    assert paths(find_images("~/photos")) == expected


def test_find_images_errors(photos):
    with pytest.raises(FileNotFoundError, match="There is no folder .*none'; check the path"):
        find_images(photos / "none")
    with pytest.raises(NotADirectoryError, match="a.jpg' is a file; give the folder"):
        find_images(photos / "a.jpg")
    empty = photos.parent / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no images \(found: nothing\); give a folder with image files"):
        find_images(empty)
    (empty / "notes.txt").write_text("notes")
    (empty / "data.parquet").write_text("data")
    with pytest.raises(FileNotFoundError, match=r"\(found: 1 .\w+, 1 .\w+\)"):
        find_images(empty)
