from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from short_runs import Configure

from engine.dataset import ahead as module
from engine.dataset.ahead import PicturesAhead
from engine.dataset.batches import epoch_batches
from engine.dataset.folders import scan
from engine.dataset.latents import pixels
from engine.events import StepFinished
from engine.run_folder import RunFolder
from engine.train import train
from knowledge.answers import PlainError
from knowledge.config import DatasetFolder, DatasetSettings


@pytest.fixture
def batches(tmp_path: Path):
    for number in range(12):
        Image.new("RGB", (64, 64), (20 * number, 0, 0)).save(tmp_path / f"{number:02}.png")
    settings = DatasetSettings(
        folders=(DatasetFolder(path=str(tmp_path)),), resolution=64, bucket_minimum_side=64, flip=True
    )
    return epoch_batches(scan(settings), settings, 2, 1, 1)


def test_pictures_are_the_same_as_without_workers(batches):
    ahead = PicturesAhead(workers=2)
    ahead.expect(batches)
    for batch in batches:
        assert torch.equal(ahead.pixels(batch), pixels(batch))


def test_a_batch_that_was_not_expected_is_decoded_all_the_same(batches):
    ahead = PicturesAhead(workers=1)
    assert torch.equal(ahead.pixels(batches[3]), pixels(batches[3]))
    ahead.expect(batches[2:])
    assert torch.equal(ahead.pixels(batches[2]), pixels(batches[2]))
    ahead.expect(batches[4:])  # as when a run is resumed elsewhere
    assert torch.equal(ahead.pixels(batches[4]), pixels(batches[4]))


def test_workers_decode_a_few_pictures_ahead_and_not_all(batches, monkeypatch):
    started, decode = [], module.decoded

    def counted(item, look):
        started.append((item.index, threading.current_thread().name))
        return decode(item, look)

    monkeypatch.setattr(module, "decoded", counted)
    ahead = PicturesAhead(workers=2)
    ahead.expect(batches)
    ahead.pixels(batches[0])
    ahead._pool.shutdown(wait=True)
    assert 4 <= len(started) <= 6  # the batch of two, and two pictures for each of two workers
    assert all(name.startswith("decode") for _, name in started)


def test_a_run_has_the_next_pictures_decoded_while_it_computes(configure: Configure, monkeypatch):
    decoded, asked = module.decoded, []
    monkeypatch.setattr(module, "decoded", lambda item, look: asked.append(item.index) or decoded(item, look))
    config = configure(memory={"cache_latents": False}, schedule={"batch_size": 1, "gradient_accumulation_steps": 1})
    for event in train(config, RunFolder.create(config)):
        if isinstance(event, StepFinished):
            break  # the run waits here, its workers do not
    most = time.monotonic() + 20
    while len(set(asked)) < 3 and time.monotonic() < most:
        time.sleep(0.01)
    assert len(set(asked)) >= 3  # the picture of the step, and two for a worker


def test_a_broken_picture_is_named_when_it_is_its_turn(batches):
    Path(batches[1].items[0].picture.path).write_bytes(b"no picture")
    ahead = PicturesAhead(workers=2)
    ahead.expect(batches)
    ahead.pixels(batches[0])
    with pytest.raises(PlainError, match="cannot be read"):
        ahead.pixels(batches[1])
