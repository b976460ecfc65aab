"""Features that are kept in files: computed once, by whatever process, and never trusted by halves."""

import errno
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState

from hf_ssl.data import TensorSource
from hf_ssl.distributed import close_process_group, rank
from hf_ssl.evaluation import (
    FeatureSpec,
    LoadedEncoder,
    cached_features,
    extract_features,
    feature_cache,
    knn_accuracy,
    load_encoder,
)
from hf_ssl.hub import evaluation_processor, export_run

from ..faults.test_disk import REMOUNT, mount, own_mounts
from ..models.test_patchmix import perturb
from ..processes import Running, run_ranks, start_ranks
from ..training import common


IMAGES = torch.cat([common.IMAGES, common.IMAGES.flip(3)])[:70]
LABELS = torch.arange(70) % 4
BLOCK = 16  # four blocks, and a rest
CLASS, MEAN = FeatureSpec("class_token"), FeatureSpec("patch_mean")
PROCESSOR = evaluation_processor(16, [0.3, 0.4, 0.5], [0.25, 0.26, 0.27])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
    monkeypatch.setattr(feature_cache, "BLOCK_SIZE", BLOCK)
    monkeypatch.setattr(feature_cache, "DEFAULT_FOLDER", tmp_path / "default")


class Counted(LoadedEncoder):
    """An encoder that tells how many images each of its forward passes had, and that may be stopped."""

    stop_after = float("inf")

    def outputs(self, pixel_values, **options):
        self.passes = [*getattr(self, "passes", []), len(pixel_values)]
        if sum(self.passes) > self.stop_after:
            raise KeyboardInterrupt
        return super().outputs(pixel_values, **options)

    def num_images(self):
        """Without the one that tells how wide features are."""
        passes, self.passes = getattr(self, "passes", []), []
        return sum(passes[1:])


def make_encoder(position_interpolation="size", processor=PROCESSOR):
    model = common.make_patchmix()
    perturb(model)
    return Counted(model.export_encoder(), processor, "vit", model, position_interpolation=position_interpolation)


def source(images=IMAGES, labels=LABELS):
    return TensorSource(images, labels)


def features(folder, encoder=None, spec=CLASS, images=None, **options):
    images = source() if images is None else images
    (rows,) = cached_features(encoder or make_encoder(), images, [spec], folder=folder, batch_size=7, **options)
    return rows


# ---- what is computed ----


def test_features_are_those_of_the_images(tmp_path):
    """In their order."""
    encoder = make_encoder()
    actual = cached_features(encoder, source(), [CLASS, MEAN], folder=tmp_path, batch_size=7)
    assert encoder.num_images() == 70, "in one pass"
    for rows, pooling in zip(actual, ("class_token", "patch_mean"), strict=True):
        expected, _ = extract_features(encoder.model, PROCESSOR, source(), pooling=pooling)
        torch.testing.assert_close(rows, expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_change_nothing(batch_size, workers, tmp_path):
    encoder = make_encoder()
    (expected,) = cached_features(encoder, source(), [MEAN], folder=tmp_path / "whole", batch_size=16)
    state = torch.get_rng_state()
    (actual,) = cached_features(
        encoder, source(), [MEAN], folder=tmp_path / "other", batch_size=batch_size, num_workers=workers
    )
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(actual, expected)
    accuracies = [knn_accuracy(rows[:20], LABELS[:20], rows[20:], LABELS[20:], 4, k=5) for rows in (actual, expected)]
    assert accuracies[0] == accuracies[1]


def test_second_time_nothing_is_computed(tmp_path):
    first, encoder = features(tmp_path), make_encoder()
    assert torch.equal(features(tmp_path, encoder), first)
    assert not hasattr(encoder, "passes")


def test_rows_are_mapped(tmp_path):
    """They are not held in memory; what a caller does to them stays with the caller."""
    rows = features(tmp_path)
    (path,) = tmp_path.rglob("features.npy")
    assert str(path) in Path("/proc/self/maps").read_text()
    before = rows.clone()
    rows.zero_()
    assert torch.equal(features(tmp_path), before)


def test_only_what_is_missing_is_computed(tmp_path, monkeypatch):
    features(tmp_path)
    (path,) = tmp_path.rglob("features.npy")
    before, asked = path.stat().st_mtime_ns, []
    encoder, compute = make_encoder(), LoadedEncoder.features
    monkeypatch.setattr(LoadedEncoder, "features", lambda *args: asked.append(args[2]) or compute(*args), raising=True)
    cached_features(encoder, source(), [MEAN, CLASS], folder=tmp_path)
    assert encoder.num_images() == 70 and all(specs == [MEAN] for specs in asked)
    assert path.stat().st_mtime_ns == before


def test_default_folder(tmp_path):
    features(None)
    assert {path.name for path in tmp_path.iterdir()} == {"default"}


# ---- what they are found by ----


def of_other_weights():
    encoder = make_encoder()
    with torch.no_grad():
        encoder.model.layernorm.bias[3] += 1e-4
    return {"encoder": encoder}


def of_other_projector():
    encoder = make_encoder()
    with torch.no_grad():
        encoder.pretraining.teacher.projector[0].weight[0, 0] += 1e-4
    return {"encoder": encoder}


def of_other_heads():
    """What a folder's weights do not tell."""
    encoder = make_encoder()
    encoder.model.config.num_attention_heads = 2
    return {"encoder": encoder}


OTHER_IMAGES = IMAGES.clone()
OTHER_IMAGES[69, 2, 15, 15] ^= 1
OTHERS = {
    "weights": of_other_weights,
    "projector": of_other_projector,
    "heads": of_other_heads,
    "one pixel": lambda: {"images": source(OTHER_IMAGES)},
    "order": lambda: {"images": source(IMAGES.roll(1, 0))},
    "fewer images": lambda: {"images": source(IMAGES[:69], LABELS[:69])},
    "mean": lambda: {
        "encoder": make_encoder(processor=evaluation_processor(16, [0.31, 0.4, 0.5], [0.25, 0.26, 0.27]))
    },
    "size": lambda: {"encoder": make_encoder(processor=evaluation_processor(24, [0.3, 0.4, 0.5], [0.25, 0.26, 0.27]))},
    "positions": lambda: {"encoder": make_encoder("scale_factor")},
    "feature": lambda: {"spec": MEAN},
    "blocks": lambda: {"spec": FeatureSpec("class_token", num_blocks=2)},
    "average": lambda: {"spec": FeatureSpec("class_token", average_pool=True)},
    "projection": lambda: {"spec": FeatureSpec("class_token", projected=True)},
    "bfloat16": lambda: {"bf16": True},
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_features_are_computed(other, tmp_path):
    features(tmp_path)
    settings = OTHERS[other]()
    encoder = settings.setdefault("encoder", make_encoder())
    rows = features(tmp_path, **settings)
    assert encoder.num_images() == len(rows) and len(list(tmp_path.rglob("features.npy"))) == 2


@pytest.mark.parametrize("projects", [False, True])
def test_encoders_are_known_by_their_content(projects, tmp_path):
    """Wherever their folder is."""
    export_run(common.make_patchmix(), PROCESSOR, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    spec = FeatureSpec("class_token", projected=projects)
    keys = []
    for name in ("run", "copy"):
        features(tmp_path / "cache", load_encoder(str(tmp_path / name), projects=projects), spec)
        keys.append({path.name for path in (tmp_path / "cache").iterdir()})
    assert len(keys[0]) == 1 and keys[0] == keys[1]
    assert str(tmp_path) not in "".join(path.read_text() for path in tmp_path.glob("cache/*/protocol.json"))


# ---- what may go wrong ----


@pytest.mark.parametrize("specs", [[CLASS], [CLASS, MEAN]])
def test_a_run_that_was_stopped_goes_on(specs, tmp_path):
    """After the blocks that it has finished."""
    encoder = make_encoder()
    encoder.stop_after = 1 + 2 * BLOCK + 7  # a batch of the third one
    with pytest.raises(KeyboardInterrupt):
        cached_features(encoder, source(), specs, folder=tmp_path / "cut", batch_size=7)
    encoder.stop_after, encoder.passes = float("inf"), []
    actual = cached_features(encoder, source(), specs, folder=tmp_path / "cut", batch_size=7)
    assert encoder.num_images() == 70 - 2 * BLOCK
    expected = cached_features(encoder, source(), specs, folder=tmp_path / "whole", batch_size=7)
    assert all(torch.equal(*rows) for rows in zip(actual, expected, strict=True))


def test_another_feature_of_a_run_that_was_stopped(tmp_path):
    """Each has its own blocks."""
    encoder = make_encoder()
    encoder.stop_after = 1 + BLOCK
    with pytest.raises(KeyboardInterrupt):
        features(tmp_path, encoder)
    encoder.stop_after = float("inf")
    for rows, spec in zip(
        cached_features(encoder, source(), [CLASS, MEAN], folder=tmp_path, batch_size=7), (CLASS, MEAN), strict=True
    ):
        torch.testing.assert_close(rows, features(tmp_path / "whole", encoder, spec))


def test_rows_that_someone_deleted(tmp_path):
    expected = features(tmp_path).clone()
    (path,) = tmp_path.rglob("features.npy")
    path.unlink()
    assert torch.equal(features(tmp_path), expected)


def test_two_runs_begin_at_once(tmp_path, monkeypatch):
    """Neither replaces the file that the other writes into."""
    allocate = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda *args: (allocate(*args), time.sleep(0.2)))

    def begin(_):
        store = feature_cache._Store(tmp_path, {}, 70)
        store.create(3)
        return next(tmp_path.rglob("features.npy")).stat().st_ino

    with ThreadPoolExecutor(2) as pool:
        assert len({*pool.map(begin, range(2)), begin(0)}) == 1


def on_a_full_disk(folder):
    if not own_mounts():
        return None
    mount(folder, 0, "size=64k")
    images = TensorSource(IMAGES.repeat(10, 1, 1, 1))
    encoder = make_encoder()
    with pytest.raises(OSError) as error:
        cached_features(encoder, images, [CLASS], folder=folder)
    left = [path.name for path in Path(folder).rglob("*.*")]
    mount(folder, REMOUNT, "size=1m")
    (rows,) = cached_features(encoder, images, [CLASS], folder=folder)
    expected, _ = extract_features(encoder.model, PROCESSOR, images, pooling="class_token")
    return error.value.errno, left, (rows - expected).abs().max().item()


def test_full_disk(tmp_path):
    """The run stops before it computes, leaves no file that looks whole, and can be repeated."""
    result = Running(on_a_full_disk, str(tmp_path)).result()
    if result is None:
        pytest.skip("this machine lets nobody mount a file system")
    code, left, error = result
    assert code == errno.ENOSPC and left == ["protocol.json"] and error < 1e-4


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        features(tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (IMAGES[:0], {}, "There are no images"),
        (IMAGES, {"batch_size": 0}, "batch_size=0"),
        (IMAGES, {"batch_size": -1}, "-1"),
    ],
)
def test_mistakes_are_explained(images, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        cached_features(make_encoder(), TensorSource(images), [CLASS], folder=tmp_path, **options)
    assert not list(tmp_path.iterdir())


# ---- several processes ----


def on_a_rank(folder):
    PartialState(cpu=True)
    feature_cache.BLOCK_SIZE = BLOCK
    encoder = make_encoder()
    rows = [cached_features(encoder, source(), [CLASS, MEAN], folder=folder, batch_size=7) for _ in range(2)][1]
    close_process_group()
    return encoder.num_images(), [part.numpy() for part in rows]


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_the_work(num_processes, tmp_path):
    """The same rows in every process, and as in one; each image is computed by one of them."""
    results = run_ranks(on_a_rank, num_processes, str(tmp_path))
    assert sum(count for count, _ in results) == 70 and all(count >= BLOCK for count, _ in results)
    encoder = make_encoder()
    expected = cached_features(encoder, source(), [CLASS, MEAN], folder=tmp_path / "one", batch_size=7)
    for _, rows in results:
        assert all(np.array_equal(*pair) for pair in zip(rows, expected, strict=True))


def on_a_node(folder):
    PartialState(cpu=True)
    features(f"{folder}/{rank()}")


def test_nodes_must_share_the_folder(tmp_path):
    """A process that does not see the files says so."""
    _, other = start_ranks(on_a_node, 2, str(tmp_path))
    with pytest.raises(
        ChildProcessError, match="process 1 does not see it: choose a folder for the features that all"
    ):
        other.result()
