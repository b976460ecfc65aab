import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets, load_dataset
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_ssl.data import EpochSampler, ImageError, PhotoSource, TensorSource, load_image_data, make_source, sources

from .helpers import encoded, make_dataset, picture, pixels, save


class ToyViews:
    """Two views: the whole photo, and a corner whose place depends on epoch and index."""

    def boxes(self, epoch, index, sizes):
        assert epoch.dtype == index.dtype == sizes.dtype == torch.int64
        zeros = torch.zeros_like(epoch)
        whole = torch.stack([zeros, zeros, sizes[:, 0], sizes[:, 1], zeros], dim=1)
        corner = torch.stack([epoch % 3, index % 4, zeros + 5, zeros + 6, zeros + 1], dim=1)
        return torch.stack([whole, corner], dim=1)

    def render(self, photo, boxes):
        crops = []
        for top, left, height, width, flip in boxes.tolist():
            crop = photo.crop((left, top, left + width, top + height)).resize((4, 4))
            crop = crop.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT) if flip else crop
            crops.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
        return {"pixel_values": torch.stack(crops), "first_pixel": crops[0][:, 0, 0]}


def assert_same_batch(batch, other):
    assert batch.keys() == other.keys()
    for name, tensor in batch.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


SIZES = [(8, 8), (12, 9), (7, 20), (16, 11), (9, 9)]


@pytest.fixture
def photos():
    images = [picture(height, width, seed) for seed, (height, width) in enumerate(SIZES)]
    return make_dataset(images, labels=[0, 1, 2, 1, 0])


@pytest.fixture
def tensor_source():
    images = [picture(8, 8, seed) for seed in range(7)]
    return make_source(make_dataset(images, labels=[0, 1, 2, 0, 1, 2, 0]))


def test_equal_sizes_are_decoded_once(tensor_source):
    assert isinstance(tensor_source, TensorSource) and len(tensor_source) == 7
    assert tensor_source.images.dtype == torch.uint8 and tensor_source.labels.dtype == torch.int64
    assert tensor_source.images.is_contiguous()
    expected = np.stack([pixels(8, 8, seed) for seed in range(7)])
    np.testing.assert_array_equal(tensor_source.images.permute(0, 2, 3, 1).numpy(), expected)
    assert tensor_source.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_tensor_batch(tensor_source):
    batch = tensor_source.__getitems__([(3, 5), (3, 0), (4, 5)])
    assert batch.keys() == {"images", "index", "epoch", "labels"}
    assert torch.equal(batch["images"], tensor_source.images[[5, 0, 5]])
    assert batch["index"].tolist() == [5, 0, 5] and batch["epoch"].tolist() == [3, 3, 4]
    assert batch["labels"].tolist() == [2, 0, 2]
    assert {batch[name].dtype for name in ("index", "epoch", "labels")} == {torch.int64}


def test_tensor_sample_for_evaluation(tensor_source):
    sample = tensor_source[4]
    assert torch.equal(sample["image"], tensor_source.images[4])
    assert sample["label"] == 1 and type(sample["label"]) is int


def test_without_labels():
    images = [picture(8, 8, seed) for seed in range(3)]
    source = make_source(make_dataset(images))
    assert source[0].keys() == {"image"} and source.__getitems__([(0, 1)]).keys() == {"images", "index", "epoch"}
    source = PhotoSource(make_dataset(images), ToyViews())
    assert source[0].keys() == {"image"} and "labels" not in source.__getitems__([(0, 1)])


def test_tensor_source_refuses_labels_of_another_length():
    with pytest.raises(ValueError, match="3 images but 2 labels"):
        TensorSource(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))


def test_gray_digits_get_three_channels():
    source = make_source(load_image_data("digits").test)
    assert source.images.shape == (360, 3, 8, 8)
    assert torch.equal(source.images[:, 0], source.images[:, 2])


def test_unequal_sizes_are_decoded_when_read(photos):
    source = make_source(photos, ToyViews())
    assert isinstance(source, PhotoSource) and len(source) == 5
    sample = source[2]
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), pixels(7, 20, seed=2))
    assert sample["image"].dtype == torch.uint8 and sample["label"] == 2


def test_a_set_too_large_for_memory_is_decoded_when_read(monkeypatch):
    dataset = make_dataset([picture(8, 8, seed) for seed in range(4)])
    monkeypatch.setattr(sources, "MAX_DECODED_BYTES", 4 * 3 * 8 * 8)
    assert isinstance(make_source(dataset), TensorSource)
    monkeypatch.setattr(sources, "MAX_DECODED_BYTES", 4 * 3 * 8 * 8 - 1)
    assert isinstance(make_source(dataset), PhotoSource)


def test_a_differing_size_found_late_is_logged(monkeypatch, caplog):
    monkeypatch.setattr(sources, "NUM_SAMPLED", 2)
    dataset = make_dataset([picture(8, 8), picture(8, 9), picture(8, 8)])
    assert isinstance(make_source(dataset), PhotoSource)
    assert "row 1 is 9x8 where those looked at first are 8x8" in caplog.text


def test_photo_batch(photos):
    views = ToyViews()
    keys = [(1, 3), (1, 0), (2, 2)]
    batch = PhotoSource(photos, views).__getitems__(keys)
    assert batch.keys() == {"pixel_values", "first_pixel", "boxes", "index", "epoch", "labels"}
    assert batch["pixel_values"].shape == (3, 2, 3, 4, 4) and batch["pixel_values"].dtype == torch.uint8
    assert batch["boxes"].shape == (3, 2, 5) and batch["boxes"].dtype == torch.int64
    assert batch["labels"].tolist() == [1, 0, 2]
    for position, (epoch, index) in enumerate(keys):
        assert batch["epoch"][position] == epoch and batch["index"][position] == index
        boxes = views.boxes(torch.tensor([epoch]), torch.tensor([index]), torch.tensor([SIZES[index]]))[0]
        assert torch.equal(batch["boxes"][position], boxes)
        rendered = views.render(picture(*SIZES[index], seed=index), boxes)
        assert torch.equal(batch["pixel_values"][position], rendered["pixel_values"])
        assert torch.equal(batch["first_pixel"][position], rendered["first_pixel"])


def test_boxes_are_drawn_in_one_call_before_anything_is_decoded(photos, monkeypatch):
    events = []

    class Recorder(ToyViews):
        def boxes(self, epoch, index, sizes):
            events.append(("boxes", sizes.tolist()))
            return super().boxes(epoch, index, sizes)

        def render(self, photo, boxes):
            events.append(("render", photo.size))
            return super().render(photo, boxes)

    decode = sources.decode_rgb
    monkeypatch.setattr(sources, "decode_rgb", lambda *args, **kw: events.append("decode") or decode(*args, **kw))
    PhotoSource(photos, Recorder()).__getitems__([(0, 1), (0, 2)])
    assert events == [
        ("boxes", [[12, 9], [7, 20]]),
        "decode",
        ("render", (9, 12)),
        "decode",
        ("render", (20, 7)),
    ]


def folder_source(tmp_path):
    for seed, (height, width) in enumerate(SIZES):
        save(picture(height, width, seed), tmp_path / "photos" / f"{seed % 2}" / f"{seed}.png")
    return make_source(load_image_data(str(tmp_path / "photos"), seed=1).train, ToyViews())


@pytest.mark.parametrize("kind", ["tensor", "photo"])
def test_workers_give_the_same_batches(kind, tensor_source, tmp_path):
    source = tensor_source if kind == "tensor" else folder_source(tmp_path)
    epochs = {}
    for num_workers in (0, 2):
        sampler = EpochSampler(len(source), seed=5)
        sampler.set_epoch(1)
        loader = DataLoader(source, batch_size=2, sampler=sampler, collate_fn=source.collate, num_workers=num_workers)
        epochs[num_workers] = list(loader)
        assert [i for batch in epochs[num_workers] for i in batch["index"].tolist()] == [i for _, i in sampler]
    assert len(epochs[0]) == len(epochs[2]) == -(-len(source) // 2)
    for batch, other in zip(epochs[0], epochs[2], strict=True):
        assert_same_batch(batch, other)


@pytest.mark.parametrize("kind", ["tensor", "photo"])
def test_sources_can_be_sent_to_spawned_workers(kind, tensor_source, tmp_path):
    source = tensor_source if kind == "tensor" else folder_source(tmp_path)
    keys = [(2, 1), (2, 0)]
    assert_same_batch(pickle.loads(pickle.dumps(source)).__getitems__(keys), source.__getitems__(keys))
    assert pickle.loads(pickle.dumps(source.collate)) is sources.collate


def test_other_samplers_read_samples_for_evaluation(tensor_source, photos):
    batch = list(DataLoader(tensor_source, batch_size=4))[1]
    assert batch.keys() == {"image", "label"} and batch["label"].tolist() == [1, 2, 0]
    assert torch.equal(batch["image"], tensor_source.images[4:])
    source = PhotoSource(photos)
    (samples,) = DataLoader(source, batch_size=5, collate_fn=list)
    assert all(torch.equal(sample["image"], source[i]["image"]) for i, sample in enumerate(samples))
    assert [sample["label"] for sample in samples] == [0, 1, 2, 1, 0]


def with_sizes(*lengths, labels=None):
    """Photos of so many bytes, each of another content; not to be decoded."""
    rows = [{"bytes": bytes([i]) * length, "path": None} for i, length in enumerate(lengths)]
    dataset = make_dataset([], labels and [])
    columns = {"image": rows} | ({"label": labels} if labels else {})
    return Dataset.from_dict(columns, features=dataset.features)


def replaced(dataset, row, content):
    images = dataset["image"][:]
    images[row] = {"bytes": content, "path": None}
    return Dataset.from_dict({"image": images}, features=dataset.features)


def test_fingerprint_is_that_of_all_photos_in_their_order(monkeypatch):
    monkeypatch.setattr(sources, "NUM_SAMPLED", 2)
    dataset = with_sizes(5, 6, 6, 7)
    fingerprint = PhotoSource(dataset).fingerprint()
    assert PhotoSource(with_sizes(5, 6, 6, 7)).fingerprint() == fingerprint
    others = [
        dataset.select([0, 2, 1, 3]),
        dataset.select([0, 1, 2]),
        replaced(dataset, 1, b"other!"),  # of the same size, and not among two that are evenly spaced
        with_sizes(5, 6, 6, 7, labels=[0, 1, 2, 0]),
        with_sizes(5, 6, 6, 7, labels=[0, 1, 2, 1]),
    ]
    assert len({fingerprint, *(PhotoSource(other).fingerprint() for other in others)}) == 6


def test_fingerprint_of_many_photos_is_of_every_size_and_of_some_photos(monkeypatch):
    monkeypatch.setattr(sources, "NUM_SAMPLED", 2)
    dataset = with_sizes(5, 6, 6, 7)
    monkeypatch.setattr(sources, "MAX_HASHED_BYTES", 23)
    fingerprint = PhotoSource(dataset).fingerprint()
    assert PhotoSource(replaced(dataset, 1, b"longer!")).fingerprint() != fingerprint
    assert PhotoSource(replaced(dataset, 3, b"another")).fingerprint() != fingerprint
    assert PhotoSource(replaced(dataset, 1, b"other!")).fingerprint() == fingerprint, "as is documented"
    monkeypatch.setattr(sources, "MAX_HASHED_BYTES", 24)
    assert PhotoSource(replaced(dataset, 1, b"other!")).fingerprint() != PhotoSource(dataset).fingerprint()


@pytest.mark.parametrize("limit", [0, 1000])
def test_fingerprint_of_a_subset_is_that_of_its_photos(monkeypatch, limit):
    monkeypatch.setattr(sources, "MAX_HASHED_BYTES", limit)
    dataset = with_sizes(5, 6, 3, 7, 4)
    subset = concatenate_datasets([dataset.select([4, 1]), dataset.select([2])])
    same = Dataset.from_list([dataset[row] for row in (4, 1, 2)], features=dataset.features)
    fingerprints = {PhotoSource(one).fingerprint() for one in (dataset.select([4, 1, 2]), subset, same)}
    assert len(fingerprints) == 1 and PhotoSource(dataset.select([4, 2, 1])).fingerprint() not in fingerprints


@pytest.mark.parametrize("limit", [0, 2**20])
def test_fingerprint_of_files_is_that_of_their_content(monkeypatch, tmp_path, limit):
    monkeypatch.setattr(sources, "MAX_HASHED_BYTES", limit)
    monkeypatch.setattr(sources, "NUM_SAMPLED", 2)
    source = folder_source(tmp_path / "original")
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    paths = [image["path"].replace("original", "copy") for image in source.dataset["image"]]
    os.utime(paths[1], ns=(1, 1))
    embedded = Dataset.from_list(
        [{**row, "image": encoded_file(row["image"]["path"])} for row in source.dataset],
        features=source.dataset.features,
    )

    def copy():
        return PhotoSource(make_source(load_image_data(str(tmp_path / "copy" / "photos"), seed=1).train).dataset)

    assert source.fingerprint() == copy().fingerprint() == PhotoSource(embedded).fingerprint()
    save(picture(13, 14), tmp_path / paths[1])
    assert copy().fingerprint() != source.fingerprint()


def encoded_file(path):
    with open(path, "rb") as file:
        return {"bytes": file.read(), "path": "photo.png"}


def test_fingerprint_is_computed_once(tmp_path):
    source = folder_source(tmp_path)
    fingerprint = source.fingerprint()
    shutil.rmtree(tmp_path / "photos")
    assert source.fingerprint() == pickle.loads(pickle.dumps(source)).fingerprint() == fingerprint
    with pytest.raises(FileNotFoundError, match="photos"):
        PhotoSource(source.dataset).fingerprint()


def test_fingerprint_where_a_photo_is_missing():
    rows = [encoded(picture()), None, {"bytes": None, "path": None}]
    dataset = Dataset.from_dict({"image": rows}).cast_column("image", make_dataset([]).features["image"])
    assert PhotoSource(dataset).fingerprint() != PhotoSource(dataset.select([0])).fingerprint()


def test_training_without_views_is_refused(photos):
    with pytest.raises(ValueError, match="no views to render; give `views`"):
        PhotoSource(photos).__getitems__([(0, 0)])


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        make_source(make_dataset([]))


def test_decode_errors_name_the_row_or_file(tmp_path):
    good = picture(16, 16)
    path = save(good, tmp_path / "a" / "broken.jpg")
    path.write_bytes(path.read_bytes()[:-30])
    dataset = load_dataset("imagefolder", data_files=str(tmp_path / "a" / "**"), split="train").cast_column(
        "image", make_dataset([good]).features["image"]
    )
    with pytest.raises(ImageError, match="broken.jpg.*truncated"):
        make_source(dataset)
    with pytest.raises(ImageError, match="broken.jpg.*truncated"):
        PhotoSource(dataset)[0]

    rows = [dict(row["image"]) for row in make_dataset([good, good])]
    rows[1]["bytes"] = rows[1]["bytes"][:-60]
    dataset = dataset.from_dict({"image": rows}, features=dataset.features)
    with pytest.raises(ImageError, match="row 1 of the dataset"):
        make_source(dataset)
    with pytest.raises(ImageError, match="row 1 of the dataset"):
        PhotoSource(dataset, ToyViews()).__getitems__([(0, 0), (0, 1)])
