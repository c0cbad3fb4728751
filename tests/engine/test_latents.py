from __future__ import annotations

import os
from pathlib import Path
from threading import Barrier

import pytest
import torch
from PIL import Image
from torch import nn

from engine.dataset import latents
from engine.dataset.batches import Batch, dataset_items, epoch_batches
from engine.dataset.folders import scan
from engine.dataset.images import Look
from engine.dataset.latents import LatentCache, decoded, pixels
from engine.dataset.store import STORES, DiskStore, MemoryStore, module_digest
from knowledge.answers import PlainError
from knowledge.config import DatasetFolder, DatasetSettings


class TinyVae(nn.Module):
    """Halves the picture; remembers how often it was asked."""

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.encoded = 0

    def encode(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.encoded += len(pictures)
        mean = nn.functional.avg_pool2d(pictures, 8) * self.weight
        return mean, torch.full_like(mean, 0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        left = Image.new("RGB", (80, 64), (50 * number, 100, 200))
        left.paste("black", (0, 0, 20, 64))
        left.save(pictures / f"{number}.png")
    return pictures


def batches(folder: Path, **values) -> tuple[DatasetSettings, list[Batch]]:
    values = {"resolution": 64, "bucket_minimum_side": 32, "bucket_step": 16} | values
    settings = DatasetSettings(folders=(DatasetFolder(path=str(folder)),), **values)
    return settings, epoch_batches(scan(settings), settings, 2, 1, 1)


def fill(cache: LatentCache, vae: TinyVae, settings: DatasetSettings) -> list[tuple[int, int]]:
    return list(cache.fill(dataset_items(scan(settings), settings), vae.encode, flipped=settings.flip))


def test_cached_latents_are_what_the_vae_gives(folder, tmp_path):
    vae, (settings, epoch) = TinyVae(), batches(folder)
    cache = LatentCache(DiskStore(tmp_path / "cache"), vae)
    assert fill(cache, vae, settings) == [(0, 3), (1, 3), (2, 3), (3, 3)]
    for batch in epoch:
        mean, std = cache.distribution(batch)
        expected_mean, expected_std = vae.encode(pixels(batch))
        assert torch.equal(mean, expected_mean.detach())
        assert torch.equal(std, expected_std)


def test_in_memory_are_the_same_latents_and_nothing_is_written(folder, tmp_path):
    settings, epoch = batches(folder, flip=True)
    kept = {}
    for location, store in STORES.items():
        vae = TinyVae()
        cache = LatentCache(store(tmp_path / location), vae)
        fill(cache, vae, settings)
        fill(cache, vae, settings)
        assert vae.encoded == 6  # each picture and its mirror once
        kept[location] = [part for batch in epoch for part in cache.distribution(batch)]
    assert all(map(torch.equal, *kept.values()))
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "disk"}


def test_a_picture_that_was_changed_is_encoded_anew_in_memory_too(folder):
    vae, (settings, epoch) = TinyVae(), batches(folder)
    cache = LatentCache(MemoryStore(), vae)
    fill(cache, vae, settings)
    Image.new("RGB", (80, 64), "green").save(folder / "1.png")
    fill(cache, vae, settings)
    assert vae.encoded == 4
    for batch in epoch:
        assert torch.equal(cache.distribution(batch)[0], vae.encode(pixels(batch))[0].detach())


def test_each_draw_is_new_and_follows_the_generator(folder, tmp_path):
    vae, (settings, (batch, *_)) = TinyVae(), batches(folder)
    cache = LatentCache(DiskStore(tmp_path / "cache"), vae)
    fill(cache, vae, settings)
    first, second = (cache.latents(batch, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, cache.latents(batch, torch.Generator().manual_seed(1)))
    mean, _ = cache.distribution(batch)
    assert 0.05 < (first - mean).std() < 0.15  # the standard deviation is 0.1


def test_the_next_run_encodes_nothing(folder, tmp_path):
    vae, (settings, _) = TinyVae(), batches(folder)
    fill(LatentCache(DiskStore(tmp_path / "cache"), vae), vae, settings)
    assert vae.encoded == 3
    assert fill(LatentCache(DiskStore(tmp_path / "cache"), TinyVae()), vae, settings) == [(3, 3)]
    assert vae.encoded == 3


def test_a_mirrored_picture_has_latents_of_its_own(folder, tmp_path):
    vae, (settings, epoch) = TinyVae(), batches(folder, flip=True)
    cache = LatentCache(DiskStore(tmp_path / "cache"), vae)
    fill(cache, vae, settings)
    assert vae.encoded == 6
    item = epoch[0].items[0]
    plain, mirrored = (
        Batch((item,), ("",), (Look(flip=flip),), epoch[0].width, epoch[0].height) for flip in (False, True)
    )
    assert torch.allclose(cache.distribution(mirrored)[0], cache.distribution(plain)[0].flip(-1), atol=1e-6)
    assert not torch.equal(cache.distribution(mirrored)[0], cache.distribution(plain)[0])


def test_a_picture_that_changes_while_it_is_encoded_is_kept_under_no_name(folder, tmp_path, monkeypatch):
    vae, (settings, epoch) = TinyVae(), batches(folder)
    before = (folder / "1.png").read_bytes()

    def edited_meanwhile(item, look):
        if item.picture.path.endswith("1.png"):
            Image.new("RGB", (80, 64), "green").save(item.picture.path)
        return decoded(item, look)

    monkeypatch.setattr(latents, "decoded", edited_meanwhile)
    with pytest.raises(PlainError, match=r"1\.png was changed while it was being read"):
        fill(LatentCache(DiskStore(tmp_path / "cache"), vae), vae, settings)
    monkeypatch.undo()
    (folder / "1.png").write_bytes(before)  # and the edit is taken back
    cache = LatentCache(DiskStore(tmp_path / "cache"), vae)
    fill(cache, vae, settings)
    for batch in epoch:
        assert torch.equal(cache.distribution(batch)[0], vae.encode(pixels(batch))[0].detach())


def test_pictures_whose_content_cannot_be_read_at_first_do_not_share_latents(folder, tmp_path, monkeypatch):
    vae, (settings, _) = TinyVae(), batches(folder)
    monkeypatch.setattr(latents, "file_digest", lambda path: (_ for _ in ()).throw(OSError("the disk is busy")))
    with pytest.raises(PlainError) as error:
        fill(LatentCache(DiskStore(tmp_path / "cache"), vae), vae, settings)
    assert all(f"{number}.png was changed" in str(error.value) for number in range(3))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_picture_of_another_size_than_was_counted_is_not_squeezed_into_its_bucket(folder):
    _, (batch, *_) = batches(folder)
    Image.new("RGB", (64, 80), "green").save(batch.items[0].picture.path)
    with pytest.raises(PlainError, match=r"was 80x64 pixels when the dataset was counted and is 64x80 now"):
        pixels(batch)


@pytest.mark.parametrize("change", ["picture", "vae", "precision", "resolution", "cut", "size before the cut"])
def test_a_stale_cache_is_never_used(folder, tmp_path, change):
    vae, (settings, _) = TinyVae(), batches(folder)
    fill(LatentCache(DiskStore(tmp_path / "cache"), vae), vae, settings)
    if change == "picture":  # same name, same size, same time
        path = folder / "1.png"
        stamp = path.stat()
        Image.new("RGB", (80, 64), "green").save(path)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    other = TinyVae(0.25 if change == "vae" else 0.5)
    if change == "precision":
        other = other.double()
    if change == "resolution":
        settings, _ = batches(folder, resolution=128)
    if change == "cut":  # 80x64 whole, where it was cut to 64x64 before
        settings, _ = batches(folder, resolution=96, bucket_no_upscale=True)
    if change == "size before the cut":  # 81x64 to the same 64x64
        settings, _ = batches(folder, bucket_no_upscale=True, bucket_step=64)
    fill(LatentCache(DiskStore(tmp_path / "cache"), other), vae, settings)
    assert vae.encoded == 3 + (1 if change == "picture" else 3)


def test_a_damaged_cache_file_is_made_again(folder, tmp_path):
    vae, (settings, _) = TinyVae(), batches(folder)
    fill(LatentCache(DiskStore(tmp_path / "cache"), vae), vae, settings)
    damaged = sorted((tmp_path / "cache").rglob("*.safetensors"))[0]
    damaged.write_bytes(damaged.read_bytes()[:20])
    cache = LatentCache(DiskStore(tmp_path / "cache"), vae)
    fill(cache, vae, settings)
    for batch in batches(folder)[1]:
        cache.distribution(batch)
    assert vae.encoded == 4


def test_every_picture_that_cannot_be_read_is_named_at_once(folder, tmp_path):
    vae, (settings, _) = TinyVae(), batches(folder)
    for name in ("0.png", "2.png"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) - 40])
    with pytest.raises(PlainError) as error:
        fill(LatentCache(DiskStore(tmp_path / "cache"), vae), vae, settings)
    assert "0.png" in str(error.value)
    assert "2.png" in str(error.value)
    assert "1.png" not in str(error.value)


def test_values_that_are_not_numbers_are_not_cached(folder, tmp_path):
    vae, (settings, _) = TinyVae(float("nan")), batches(folder)
    with pytest.raises(PlainError, match="not numbers"):
        fill(LatentCache(DiskStore(tmp_path / "cache"), vae), vae, settings)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_module_has_one_digest_wherever_it_lies():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.load_state_dict(first.state_dict())
    assert module_digest(first) == module_digest(second)
    second.bias.data[0] += 1
    assert module_digest(first) != module_digest(second)
    assert module_digest(first) != module_digest(first.to(torch.bfloat16))
    told = []
    for config in ({"hidden_act": "gelu"}, {"hidden_act": "gelu", "_name_or_path": "/here"}, {"hidden_act": "relu"}):
        first.config = config
        told.append(module_digest(first))
    assert told[0] == told[1] != told[2]


def test_pictures_are_decoded_on_every_core_at_once(folder, tmp_path, monkeypatch):
    cores = 3
    together = Barrier(cores)  # nobody gets past it before all of them are there

    def decoded_together(item, look):
        together.wait(timeout=20)
        return decoded(item, look)

    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(latents, "decoded", decoded_together)
    vae, (settings, _) = TinyVae(), batches(folder)
    assert fill(LatentCache(DiskStore(tmp_path / "cache"), vae), vae, settings)[-1] == (3, 3)
