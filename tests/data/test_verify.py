import os

import pytest
from datasets import Image, load_dataset

from hf_ssl.data import ImageError, verify, verify_images

from .helpers import make_dataset, make_folder, picture, save
from .test_images import broken_files


def load_folder(folder):
    dataset = load_dataset("imagefolder", data_files=str(folder / "**"), split="train")
    return dataset.cast_column("image", Image(decode=False))


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "photos", {f"{i:02d}.png": i for i in range(4)})


@pytest.fixture
def counted(monkeypatch):
    calls = []
    original = verify.find_problem

    def find_problem(image):
        calls.append(os.path.basename(image["path"]))
        return original(image)

    monkeypatch.setattr(verify, "find_problem", find_problem)
    return calls


def test_good_images_pass_unchanged(folder):
    dataset = load_folder(folder)
    assert verify_images(dataset, skip_bad_images=False) is dataset


def test_bad_images_are_all_named(folder):
    broken = broken_files(folder)
    del broken["absent.jpg"]
    with pytest.raises(ImageError) as caught:
        verify_images(load_folder(folder), skip_bad_images=False)
    message = str(caught.value)
    assert message.startswith(f"{len(broken)} of {len(broken) + 4} images cannot be read:")
    for name, reason in broken.items():
        (line,) = [line for line in message.splitlines() if f"{name}'" in line]
        assert reason in line
    assert "--skip_bad_images" in message


def test_only_the_first_ten_are_named(tmp_path):
    for i in range(12):
        (tmp_path / f"{i:02d}.jpg").write_text("no image")
    save(picture(), tmp_path / "good.jpg")
    with pytest.raises(ImageError) as caught:
        verify_images(load_folder(tmp_path), skip_bad_images=False)
    message = str(caught.value)
    assert "12 of 13 images" in message and "09.jpg" in message and "10.jpg" not in message and "and 2 more" in message


def test_skipping_keeps_the_good_images_and_logs_the_bad(folder, caplog):
    broken_files(folder)
    kept = verify_images(load_folder(folder), skip_bad_images=True)
    assert [os.path.basename(row["image"]["path"]) for row in kept] == ["00.png", "01.png", "02.png", "03.png"]
    assert "Left out 5 of 9 images" in caplog.text and "truncated.jpg" in caplog.text


def test_nothing_left_is_an_error(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(ImageError, match="None of the 1 images can be read"):
        verify_images(load_folder(tmp_path), skip_bad_images=True)


def test_images_without_path_are_named_by_row():
    dataset = make_dataset([picture(), picture()])
    dataset = dataset.map(
        lambda image, row: {"image": {"bytes": b"junk", "path": None} if row else image},
        input_columns="image",
        with_indices=True,
    )
    with pytest.raises(ImageError, match="the image in row 1 of the dataset"):
        verify_images(dataset, skip_bad_images=False)


def test_second_call_does_no_work_until_a_file_changes(folder, counted):
    verify_images(load_folder(folder), skip_bad_images=False)
    assert sorted(counted) == ["00.png", "01.png", "02.png", "03.png"]
    verify_images(load_folder(folder), skip_bad_images=False)
    assert len(counted) == 4

    path = folder / "02.png"
    path.write_text("no image")
    os.utime(path, (1, 1))
    with pytest.raises(ImageError, match="02.png"):
        verify_images(load_folder(folder), skip_bad_images=False)
    assert len(counted) == 8
