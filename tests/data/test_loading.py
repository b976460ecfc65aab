import os
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from sklearn.datasets import load_digits

from hf_ssl.data import DATASETS, DatasetInfo, ImageError, decode_rgb, load_image_data, loading

from .helpers import encoded, make_dataset, make_folder, picture, pixels


COMMIT = "0123456789abcdef" * 2 + "01234567"


def file_names(split):
    return [os.path.relpath(row["image"]["path"]).split(os.sep)[-1] for row in split]


def save_parquet(dataset, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(path)
    return path


def labeled(num_samples, num_classes=3, start=0):
    images = [picture(4, 4, seed) for seed in range(start, start + num_samples)]
    return make_dataset(images, [i % num_classes for i in range(num_samples)], num_classes)


def raw_parquet(path, **columns):
    """A parquet file without the feature types of `datasets`."""
    pq.write_table(pa.table(columns), path)


# The registry


def test_registry_has_the_documented_names():
    assert " ".join(DATASETS) == "cifar10 cifar100 svhn flowers102 tiny-imagenet imagenet100 imagenet-1k"
    for info in DATASETS.values():
        assert info.path.count("/") == 1 and info.train_split != info.test_split
    with pytest.raises(AttributeError):
        DATASETS["cifar10"].path = "other/id"


# digits


def test_digits():
    data = load_image_data("digits")
    reference = load_digits()
    assert (data.name, len(data.train), len(data.test)) == ("digits", 1437, 360)
    assert data.class_names == [str(digit) for digit in range(10)]
    assert data.train.features["image"] == Image(decode=False)
    assert [*data.train["label"], *data.test["label"]] == reference.target.tolist()
    for split, row, source in (
        (data.train, 0, 0),
        (data.train, 1436, 1436),
        (data.test, 0, 1437),
        (data.test, 359, 1796),
    ):
        gray = np.asarray(decode_rgb(split[row]["image"]))[..., 0]
        np.testing.assert_array_equal(gray, np.rint(reference.images[source] * 255 / 16))
    assert np.asarray(decode_rgb(data.train[0]["image"])).max() > 200


# Folders of images


def test_flat_folder_has_no_labels(tmp_path):
    folder = make_folder(tmp_path / "photos", {"test_a.png": 0, "b.jpg": 1, "train.png": 2})
    data = load_image_data(str(folder))
    assert file_names(data.train) == ["b.jpg", "test_a.png", "train.png"]
    assert data.train.column_names == ["image"] and data.test is None and data.class_names is None
    assert data.train.features["image"] == Image(decode=False)


def test_subfolders_are_labels(tmp_path):
    folder = make_folder(tmp_path / "pets", {f"{name}/{i}.png": i for name in ("dog", "cat") for i in range(20)})
    data = load_image_data(str(folder))
    assert data.class_names == ["cat", "dog"]
    for split in (data.train, data.test):
        for row in split:
            assert f"/{data.class_names[row['label']]}/" in row["image"]["path"]
    assert len(data.train) == 36 and len(data.test) == 4


@pytest.mark.parametrize("test_name", ["test", "val", "validation", "Test"])
def test_split_subfolders_with_labels(tmp_path, test_name):
    files = {f"train/{name}/{i}.png": i for name in ("cat", "dog") for i in range(3)}
    # A class missing from the test split must not shift the ids.
    folder = make_folder(tmp_path / "pets", files | {f"{test_name}/dog/9.png": 9})
    data = load_image_data(str(folder))
    assert data.class_names == ["cat", "dog"]
    assert data.train["label"][:] == [0, 0, 0, 1, 1, 1]
    assert data.test["label"][:] == [1] and file_names(data.test) == ["9.png"]
    assert data.test_name == test_name


def test_split_subfolders_without_labels(tmp_path):
    folder = make_folder(tmp_path / "photos", {"train/a.png": 0, "train/b.png": 1, "val/c.png": 2})
    data = load_image_data(str(folder))
    assert file_names(data.train) == ["a.png", "b.png"] and file_names(data.test) == ["c.png"]
    assert data.train.column_names == data.test.column_names == ["image"]


def test_test_is_preferred_to_val_and_the_rest_is_reported(tmp_path, caplog):
    folder = make_folder(tmp_path / "photos", {"train/a.png": 0, "val/b.png": 1, "test/c.png": 2, "old/d.png": 3})
    data = load_image_data(str(folder))
    assert file_names(data.test) == ["c.png"] and data.test_name == "test"
    assert "['old', 'val'] belong to no split" in caplog.text


def test_train_alone_is_a_split(tmp_path):
    folder = make_folder(tmp_path / "photos", {"train/a/a.png": 0, "train/b/b.png": 1})
    assert load_image_data(str(folder)).class_names == ["a", "b"]


def test_a_class_may_be_called_train(tmp_path):
    folder = make_folder(tmp_path / "vehicles", {f"{name}/{i}.png": i for name in ("car", "train") for i in range(2)})
    assert load_image_data(str(folder)).class_names == ["car", "train"]


@pytest.mark.parametrize(
    "files", [["a.png", "x/b.png"], ["2020/01/a.png", "2020/02/b.png"], ["only/a.png", "only/b.png"]]
)
def test_folders_that_are_no_classes(tmp_path, files, caplog):
    folder = make_folder(tmp_path / "photos", {name: seed for seed, name in enumerate(files)})
    data = load_image_data(str(folder))
    assert len(data.train) == 2 and data.class_names is None and data.train.column_names == ["image"]
    assert "its subfolders are not taken as labels" in caplog.text


def test_awkward_names(tmp_path):
    files = {"a [1]/ü?.png": 0, "b*/x y.PNG": 1, ".hidden/c.png": 2, "b*/.d.png": 3}
    folder = make_folder(tmp_path / "photos [2020]", files)
    (folder / "notes.txt").write_text("not an image")
    (folder / "b*" / "notes.txt").write_text("not an image")
    data = load_image_data(str(folder))
    assert data.class_names == ["a [1]", "b*"]
    assert sorted([*file_names(data.train), *file_names(data.test)]) == ["x y.PNG", "ü?.png"]


def test_class_folders_may_be_links(tmp_path):
    stored = make_folder(tmp_path / "stored", {"1/a.png": 0, "2/b.png": 1})
    folder = tmp_path / "subset" / "train"
    folder.mkdir(parents=True)
    for name, target in ("cat", "1"), ("dog", "2"):
        (folder / name).symlink_to(stored / target)
    data = load_image_data(str(tmp_path / "subset"))
    assert data.class_names == ["cat", "dog"]
    assert sorted([*file_names(data.train), *file_names(data.test)]) == ["a.png", "b.png"]


def test_linked_parent_folder_is_not_followed_forever(tmp_path):
    folder = make_folder(tmp_path / "set", {"a/a.png": 0, "b/b.png": 1})
    (folder / "a" / "up").symlink_to(folder)
    assert load_image_data(str(folder)).class_names == ["a", "b"]


def test_labels_of_a_metadata_file(tmp_path):
    folder = make_folder(tmp_path / "set", {"x/a.png": 0, "y/b.png": 1})
    (folder / "metadata.csv").write_text("file_name,label,note\nx/a.png,7,first\ny/b.png,4,second\n")
    data = load_image_data(str(folder))
    assert sorted([*data.train["label"], *data.test["label"]]) == [4, 7]
    assert data.train.column_names == ["image", "label"]


def test_wordnet_ids_become_names(tmp_path):
    folder = make_folder(tmp_path / "imagenet", {"n01443537/a.png": 0, "n02123045/b.png": 1})
    goldfish, tabby = load_image_data(str(folder)).class_names
    assert goldfish.startswith("goldfish") and tabby.startswith("tabby")


def test_home_folder_and_relative_paths(tmp_path, monkeypatch):
    make_folder(tmp_path / "photos", {"a.png": 0})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("~/photos", "photos", "./photos/"):
        assert file_names(load_image_data(name).train) == ["a.png"]


def test_bad_images_of_a_folder(tmp_path):
    folder = make_folder(tmp_path / "photos", {f"{name}/{i}.png": i for name in ("a", "b") for i in range(4)})
    (folder / "a" / "text.jpg").write_text("not an image")
    with pytest.raises(ImageError, match="text.jpg"):
        load_image_data(str(folder))
    data = load_image_data(str(folder), skip_bad_images=True)
    assert sorted(file_names(data.train) + file_names(data.test)) == sorted([f"{i}.png" for i in range(4)] * 2)


# Folders of parquet files


@pytest.mark.parametrize("test_name", ["test", "val", "valid", "validation", "validation-00000-of-00001"])
def test_parquet_folder(tmp_path, test_name):
    save_parquet(labeled(6), tmp_path / "train.parquet")
    save_parquet(labeled(3, start=6), tmp_path / f"{test_name}.parquet")
    data = load_image_data(str(tmp_path))
    assert data.test_name == test_name.split("-")[0] and data.revision is None
    assert (len(data.train), len(data.test)) == (6, 3)
    assert data.class_names == ["class 0", "class 1", "class 2"]
    assert data.test.features["image"] == Image(decode=False)
    np.testing.assert_array_equal(np.asarray(decode_rgb(data.test[1]["image"])), pixels(4, 4, seed=7))


def test_hub_layout(tmp_path):
    save_parquet(labeled(4), tmp_path / "data" / "train-00000-of-00002.parquet")
    save_parquet(labeled(5, start=4), tmp_path / "data" / "train-00001-of-00002.parquet")
    save_parquet(labeled(3), tmp_path / "data" / "test-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("a card")
    data = load_image_data(str(tmp_path))
    assert (len(data.train), len(data.test)) == (9, 3)


def test_split_may_be_the_name_of_a_subfolder(tmp_path):
    save_parquet(labeled(4), tmp_path / "valentine" / "train" / "0000.parquet")
    save_parquet(labeled(3), tmp_path / "valentine" / "test" / "0000.parquet")
    (tmp_path / "metadata.csv").write_text("about,something\nelse,entirely\n")
    data = load_image_data(str(tmp_path))
    assert (len(data.train), len(data.test)) == (4, 3)


def test_parquet_files_without_split_names_are_for_training(tmp_path, caplog):
    save_parquet(labeled(4), tmp_path / "a.parquet")
    save_parquet(labeled(6), tmp_path / "b.parquet")
    data = load_image_data(str(tmp_path))
    assert len(data.train) + len(data.test) == 10


def test_unused_parquet_files_are_reported(tmp_path, caplog):
    for name in ("train", "test", "extra"):
        save_parquet(labeled(4), tmp_path / f"{name}.parquet")
    assert len(load_image_data(str(tmp_path)).train) == 4
    assert "1 parquet files belong to no split" in caplog.text and "extra.parquet" in caplog.text


def test_columns_are_renamed_and_others_dropped(tmp_path):
    features = Features(
        {
            "id": Value("string"),
            "img": Image(),
            "fine_label": ClassLabel(num_classes=3),
            "coarse": ClassLabel(num_classes=2),
        }
    )
    rows = {"id": ["x", "y"], "img": [encoded(picture())] * 2, "fine_label": [2, 0], "coarse": [1, 1]}
    save_parquet(Dataset.from_dict(rows, features=features), tmp_path / "train.parquet")
    save_parquet(Dataset.from_dict(rows, features=features), tmp_path / "test.parquet")
    data = load_image_data(str(tmp_path))
    assert data.train.column_names == ["image", "label"] and data.train["label"][:] == [2, 0]
    assert load_image_data(str(tmp_path), label_column="coarse").train["label"][:] == [1, 1]


@pytest.mark.parametrize("storage", ["bytes", "large bytes", "struct"])
def test_untyped_images_are_cast(tmp_path, storage):
    encoded_bytes = [encoded(picture(4, 5, seed))["bytes"] for seed in range(2)]
    column = {
        "bytes": pa.array(encoded_bytes, pa.binary()),
        "large bytes": pa.array(encoded_bytes, pa.large_binary()),
        "struct": pa.array([{"path": "x", "bytes": data} for data in encoded_bytes]),
    }[storage]
    raw_parquet(tmp_path / "train.parquet", picture=column, labels=pa.array([1, 0]), caption=pa.array(["a", "b"]))
    raw_parquet(tmp_path / "test.parquet", picture=column, labels=pa.array([1, 0]), caption=pa.array(["a", "b"]))
    data = load_image_data(str(tmp_path))
    assert data.train.features["image"] == Image(decode=False)
    assert data.train["label"][:] == [1, 0] and data.class_names is None
    np.testing.assert_array_equal(np.asarray(decode_rgb(data.train[1]["image"])), pixels(4, 5, seed=1))


def test_bad_images_of_a_parquet_folder_can_be_skipped(tmp_path):
    images = pa.array([encoded(picture())["bytes"], b"junk"], pa.binary())
    raw_parquet(tmp_path / "train.parquet", image=images)
    assert len(load_image_data(str(tmp_path)).train) == 2
    assert len(load_image_data(str(tmp_path), skip_bad_images=True).train) == 1


# Registry and Hub. A local repository stands in for one on the Hub: `datasets` resolves both in the same way.


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    save_parquet(labeled(6), root / "data" / "train-00000-of-00001.parquet")
    save_parquet(labeled(3, start=6), root / "data" / "valid-00000-of-00001.parquet")
    (root / "data" / "extra-00000-of-00001.parquet").write_bytes(b"reading this fails")
    return root


@pytest.fixture
def registered(repository, monkeypatch):
    info = DatasetInfo(str(repository), None, "image", "label", "train", "valid", 4)
    monkeypatch.setitem(DATASETS, "stand-in", info)
    return info


def test_registry_loads_only_the_splits_it_needs(registered):
    data = load_image_data("stand-in")
    assert (len(data.train), len(data.test), data.test_name) == (6, 3, "valid")
    assert data.class_names == ["class 0", "class 1", "class 2"]


def test_id_of_a_registered_dataset_uses_its_entry(monkeypatch, repository):
    monkeypatch.chdir(repository.parent.parent)
    asked = []

    def load_hub(path, config, train_split, test_split, revision):
        asked.append((path, config, train_split, test_split, revision))
        return {"train": labeled(3), "test": labeled(3)}, test_split, None

    monkeypatch.setattr(loading, "_load_hub", load_hub)
    load_image_data("ILSVRC/imagenet-1k", revision="v2")
    load_image_data("somebody/dataset")
    assert asked == [
        ("ILSVRC/imagenet-1k", None, "train", "validation", "v2"),
        ("somebody/dataset", None, None, None, None),
    ]


def test_splits_of_an_unregistered_dataset_are_discovered(repository):
    splits, test_name, revision = loading._load_hub(str(repository), None, None, None, None)
    assert {key: len(split) for key, split in splits.items()} == {"train": 6, "test": 3}
    assert test_name == "valid" and revision is None, "its hash is no commit"


def image_repository(root):
    files = {f"{split}/{name}/{i}.png": i for split in ("train", "val") for name in "ab" for i in range(2)}
    return make_folder(root, files)


@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_revision_is_the_commit_that_was_loaded(kind, repository, tmp_path, monkeypatch):
    root = repository if kind == "parquet" else image_repository(tmp_path / "images")
    load_builder, asked = loading.load_dataset_builder, []

    def of_the_hub(path, config, revision):
        asked.append((path, revision))
        builder = load_builder(str(root), config)
        builder.repo_id, builder.hash = path, COMMIT
        return builder

    monkeypatch.setattr(loading, "load_dataset_builder", of_the_hub)
    data = load_image_data("some/photos", revision="v2")
    assert data.revision == COMMIT and asked == [("some/photos", "v2")]
    assert data.test_name == ("valid" if kind == "parquet" else "validation")
    assert (len(data.train), len(data.test)) == ((6, 3) if kind == "parquet" else (4, 4))


def test_revision_of_what_lies_in_the_cache(tmp_path):
    """`datasets` takes the last one that was loaded, whatever revision is asked for."""
    folder = image_repository(tmp_path / "images")
    data_files = {"train": [f"{folder}/train/**"], "validation": [f"{folder}/val/**"]}
    cached = Path(datasets.config.HF_DATASETS_CACHE, "some___photos", "default", "0.0.0", COMMIT)
    ImageFolder(dataset_name="photos", data_files=data_files).download_and_prepare(str(cached))
    for revision in (None, COMMIT):
        data = load_image_data("some/photos", revision=revision)
        assert (data.revision, data.test_name, len(data.train), len(data.test)) == (COMMIT, "validation", 4, 4)
    with pytest.raises(
        FileNotFoundError, match=f"Revision 'v2' of .*'some/photos' .*the cache holds '{COMMIT}'; check"
    ):
        load_image_data("some/photos", revision="v2")


def test_missing_split_names_those_there_are(repository):
    with pytest.raises(ValueError, match=r"has the splits \[.*'train'.*\] but not \['test'\].*save the wanted splits"):
        loading._load_hub(str(repository), None, "train", "test", None)


@pytest.mark.parametrize("name", ["cifar", "cifar-10", "CIFAR10"])
def test_unknown_name_suggests_close_ones(name):
    with pytest.raises(
        FileNotFoundError, match=f"'{name}' is not a known name, nor.*Did you mean 'cifar10'.*the network"
    ):
        load_image_data(name)


def test_unknown_id_lists_known_names():
    with pytest.raises(
        FileNotFoundError, match="'some/thing' is not a known name.*Known names are digits, cifar10.*hf auth"
    ):
        load_image_data("some/thing")


def test_registered_dataset_out_of_reach_is_not_called_unknown():
    with pytest.raises(
        FileNotFoundError, match="^Dataset 'ufldl-stanford/svhn' cannot be loaded from the Hub.*network"
    ):
        load_image_data("svhn")


def test_dataset_with_several_configurations(tmp_path):
    save_parquet(labeled(2), tmp_path / "a" / "train.parquet")
    card = "---\nconfigs:\n- config_name: x\n  data_files: a/*\n- config_name: y\n  data_files: a/*\n---\n"
    (tmp_path / "README.md").write_text(card)
    with pytest.raises(ValueError, match=r"cannot be loaded as a whole .*\['x', 'y'\].*save the wanted part"):
        loading._load_hub(str(tmp_path), None, None, None, None)


# Held-out split and subsets


def test_held_out_split_is_stratified_disjoint_and_deterministic(tmp_path, caplog):
    counts = {"a": 60, "b": 30, "c": 10}
    make_folder(tmp_path / "set", {f"{name}/{name}{i}.png": i for name, count in counts.items() for i in range(count)})
    data = load_image_data(str(tmp_path / "set"), seed=3)
    assert "has no test split: 10 of 100 training samples are held out, in the proportions" in caplog.text
    assert Counter(data.test["label"][:]) == {0: 6, 1: 3, 2: 1}
    train, test = file_names(data.train), file_names(data.test)
    assert len({*train, *test}) == 100 and not {*train} & {*test}
    assert file_names(load_image_data(str(tmp_path / "set"), seed=3).test) == test
    assert file_names(load_image_data(str(tmp_path / "set"), seed=4).test) == test, (
        "or a run would test what another learned"
    )


def test_held_out_split_of_small_classes_is_random(tmp_path, caplog):
    raw_parquet(
        tmp_path / "all.parquet", image=pa.array([encoded(picture())["bytes"]] * 20), label=pa.array(range(20))
    )
    data = load_image_data(str(tmp_path))
    assert (len(data.train), len(data.test)) == (18, 2)
    assert sorted([*data.train["label"], *data.test["label"]]) == list(range(20))
    assert "held out, at random" in caplog.text


def test_held_out_split_is_capped(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "MAX_HELD_OUT", 3)
    save_parquet(labeled(60), tmp_path / "all.parquet")
    assert len(load_image_data(str(tmp_path)).test) == 3


def test_subsets_are_shuffled_and_deterministic():
    whole = load_image_data("digits")
    data = load_image_data("digits", max_train_samples=50, max_test_samples=20, seed=1)
    again = load_image_data("digits", max_train_samples=50, max_test_samples=20, seed=1)
    other = load_image_data("digits", max_train_samples=50, max_test_samples=20, seed=2)
    assert (len(data.train), len(data.test)) == (50, 20)
    for subset, same, different, full in (
        (data.train, again.train, other.train, whole.train),
        (data.test, again.test, other.test, whole.test),
    ):
        assert subset["image"][:] == same["image"][:]
        assert subset["image"][:] != different["image"][:]
        assert subset["image"][:] != full[: len(subset)]["image"]
        rows = {row["image"]["bytes"]: row["label"] for row in full}
        assert all(rows[row["image"]["bytes"]] == row["label"] for row in subset)
        assert len({row["image"]["bytes"] for row in subset}) == len(subset)


def test_subset_of_a_folder_sorted_by_class_has_every_class(tmp_path):
    make_folder(tmp_path / "set", {f"{name}/{i}.png": i for name in "abc" for i in range(20)})
    assert set(load_image_data(str(tmp_path / "set"), max_train_samples=20).train["label"]) == {0, 1, 2}


def test_subset_larger_than_the_split_is_the_split():
    assert len(load_image_data("digits", max_test_samples=1000).test) == 360


# Errors


def test_sample_limits_must_be_positive():
    for argument in ("max_train_samples", "max_test_samples"):
        with pytest.raises(ValueError, match=f"`{argument}` is 0; give at least 1"):
            load_image_data("digits", **{argument: 0})


def test_revision_needs_the_hub(tmp_path):
    for name in ("digits", str(tmp_path)):
        with pytest.raises(ValueError, match="`revision='v1'` was given for .* not on the Hub.*leave it out"):
            load_image_data(name, revision="v1")


@pytest.mark.parametrize("name", ["/nowhere/photos", "./photos", "~/no such photos", "photos/", "a/b/c"])
def test_missing_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"There is no folder '{name}'; check the path"):
        load_image_data(name)


def test_file_instead_of_folder(tmp_path):
    path = save_parquet(labeled(2), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="train.parquet' is a file; give the folder"):
        load_image_data(str(path))


def test_folder_without_images(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no images.*\(found: nothing\); give a folder with image files"
    ):
        load_image_data(str(tmp_path))
    for name in ("a.heic", "b.heic", "notes.txt", "LICENSE"):
        (tmp_path / name).write_text("x")
    with pytest.raises(FileNotFoundError, match=r"\(found: 2 \.heic, 1 .*"):
        load_image_data(str(tmp_path))


def test_mixed_folder(tmp_path):
    make_folder(tmp_path, {"a.png": 0})
    save_parquet(labeled(2), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=f"{tmp_path}' holds both images and parquet files.*move one kind"):
        load_image_data(str(tmp_path))


def test_parquet_folder_without_training_split(tmp_path):
    save_parquet(labeled(2), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"no training split.*\['test.parquet'\].*begin with 'train'"):
        load_image_data(str(tmp_path))


def test_no_image_column(tmp_path):
    raw_parquet(tmp_path / "train.parquet", a=pa.array([1]), b=pa.array(["x"]))
    with pytest.raises(ValueError, match=r"no column of images among \['a', 'b'\]; store"):
        load_image_data(str(tmp_path))


def test_several_image_columns(tmp_path):
    image = pa.array([encoded(picture())["bytes"]])
    raw_parquet(tmp_path / "train.parquet", photo=image, mask=image, label=pa.array([0]))
    with pytest.raises(ValueError, match=r"several columns of images, \['photo', 'mask'\]; .*`image_column`"):
        load_image_data(str(tmp_path))
    assert len(load_image_data(str(tmp_path), image_column="photo").train) == 1


@pytest.mark.parametrize("argument", ["image_column", "label_column"])
def test_named_column_is_missing(argument):
    with pytest.raises(
        ValueError, match=rf"'digits' has no column 'x'; give one of \['image', 'label'\] as `{argument}`"
    ):
        load_image_data("digits", **{argument: "x"})


def test_named_image_column_holds_no_images():
    with pytest.raises(ValueError, match="Column 'label' of dataset 'digits' holds .*not images; give another"):
        load_image_data("digits", image_column="label")


@pytest.mark.parametrize("values", [["cat", "dog"], [0.5, 1.5], [[1], [2]]])
def test_label_column_of_unusable_type(tmp_path, values):
    image = pa.array([encoded(picture())["bytes"]] * 2)
    raw_parquet(tmp_path / "train.parquet", image=image, label=pa.array(values), other=pa.array(values))
    for argument, name in ({}, "label"), ({"label_column": "other"}, "other"):
        with pytest.raises(
            ValueError, match=f"Column '{name}' of .* not class ids; convert it with `Dataset.class_enc"
        ):
            load_image_data(str(tmp_path), **argument)


def test_several_label_columns(tmp_path):
    features = Features({"image": Image(), "kind": ClassLabel(num_classes=2), "color": ClassLabel(num_classes=2)})
    rows = {"image": [encoded(picture())] * 2, "kind": [0, 1], "color": [1, 1]}
    save_parquet(Dataset.from_dict(rows, features=features), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"several columns of labels, \['kind', 'color'\]; .*`label_column`"):
        load_image_data(str(tmp_path))


def test_a_mask_called_label_is_no_label(tmp_path):
    features = Features({"image": Image(), "label": Image()})
    rows = {"image": [encoded(picture(4, 4, 1))], "label": [encoded(picture(4, 4, 2))]}
    save_parquet(Dataset.from_dict(rows, features=features), tmp_path / "train.parquet")
    data = load_image_data(str(tmp_path), image_column="image")
    assert data.train.column_names == ["image"]
    np.testing.assert_array_equal(np.asarray(decode_rgb(data.train[0]["image"])), pixels(4, 4, 1))


@pytest.mark.parametrize("labels", [[-1, -1], [0, None]])
def test_missing_or_negative_labels(tmp_path, labels):
    image = pa.array([encoded(picture())["bytes"]] * 2)
    raw_parquet(tmp_path / "train.parquet", image=image, label=pa.array([0, 1]))
    raw_parquet(tmp_path / "test.parquet", image=image, label=pa.array(labels, pa.int64()))
    with pytest.raises(ValueError, match="Column 'label' of the test split of .* missing or negative labels; remove"):
        load_image_data(str(tmp_path))


def test_zero_samples(tmp_path):
    save_parquet(labeled(0), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=f"The train split of '{tmp_path}' has no samples; write some"):
        load_image_data(str(tmp_path))


def test_damaged_parquet_file(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"junk")
    with pytest.raises(ValueError, match="Cannot read '.*train.parquet': .*Remove the file or write it anew"):
        load_image_data(str(tmp_path))


def test_cache_of_the_user_is_not_touched():
    assert "datasets_cache" in str(datasets.config.HF_DATASETS_CACHE)


def test_name_of_the_test_split(tmp_path):
    """A card says which images a number was measured on."""
    assert load_image_data("digits").test_name == "test"
    folder = make_folder(tmp_path / "photos", {f"{'ab'[i % 2]}/{i}.png": i for i in range(20)})
    data = load_image_data(str(folder))
    assert data.test_name == "held-out" and data.revision is None


def test_a_single_image_has_labels_but_no_test_image(tmp_path):
    save_parquet(labeled(1), tmp_path / "train.parquet")
    data = load_image_data(str(tmp_path))
    assert data.num_classes == 3 and data.test is None
