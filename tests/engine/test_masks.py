from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from short_runs import PICTURES, Configure, run_to_end, same, weights
from torch.nn import functional as F

from engine.dataset.batches import Batch, epoch_batches
from engine.dataset.folders import scan
from engine.dataset.images import Look
from engine.dataset.masks import Masks, create_masks
from engine.loss import loss_per_image, weighted_loss_per_image
from knowledge.answers import PlainError
from knowledge.config import DatasetFolder, DatasetSettings, LossSettings

LOSSES = json.loads((Path(__file__).parents[1] / "data" / "losses.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A picture with a mask that is white on its left half, and one without a mask."""
    (tmp_path / "masks").mkdir()
    for name in "ab":
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    mask.save(tmp_path / "masks" / "a.jpg", quality=100)
    return tmp_path


def batch_of(settings: DatasetSettings) -> Batch:
    (batch,) = epoch_batches(scan(settings), settings, 2, 1, 1)
    order = sorted(range(2), key=lambda index: batch.items[index].picture.path)
    return Batch(tuple(batch.items[i] for i in order), ("", ""), (Look(), Look()), 64, 64)


def settings(folder: Path, masks: str = "", **values) -> DatasetSettings:
    return DatasetSettings(
        folders=(DatasetFolder(path=str(folder), masks=masks),), resolution=64, bucket_minimum_side=64, **values
    )


def test_masks_come_from_their_folder_at_the_size_of_the_latents(folder):
    chosen = settings(folder, str(folder / "masks"))
    masks = Masks(chosen).of(batch_of(chosen), 8, 8)
    assert masks.shape == (2, 1, 8, 8)
    assert torch.allclose(masks[0, 0, :, :3], torch.ones(8, 3), atol=0.02)
    assert torch.allclose(masks[0, 0, :, 5:], torch.zeros(8, 3), atol=0.02)
    assert (masks[1] == 1).all()  # no mask: the picture counts whole


def test_a_folder_of_masks_alone_steers_a_run_with_a_cache_and_without(configure: Configure, tmp_path: Path):
    for picture in PICTURES.glob("*.png"):
        mask = Image.new("L", Image.open(picture).size)
        mask.paste(255, (0, 0, mask.width // 2, mask.height))
        mask.save(tmp_path / picture.name)

    def learnt(masks: str, **memory: bool) -> dict[str, torch.Tensor]:
        folders = [{"path": str(PICTURES), "masks": masks}]
        run, _ = run_to_end(configure(dataset={"folders": folders}, memory=memory, schedule={"maximum_steps": 1}))
        return weights(run)

    masked, anew = learnt(str(tmp_path)), learnt(str(tmp_path), cache_latents=False)
    assert not same(masked, learnt(""))
    for name, tensor in masked.items():
        torch.testing.assert_close(anew[name], tensor, rtol=1e-3, atol=1e-5)


def test_masks_are_mirrored_and_cut_with_their_picture(folder):
    chosen = settings(folder, str(folder / "masks"))
    plain = batch_of(chosen)
    flipped = Batch(plain.items, plain.captions, (Look(flip=True), Look()), 64, 64)
    masks = Masks(chosen)
    assert torch.allclose(masks.of(flipped, 8, 8)[0], masks.of(plain, 8, 8)[0].flip(-1), atol=0.02)


def test_a_mask_is_cut_where_its_picture_is_and_anew_each_time(tmp_path):
    Image.new("RGB", (128, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    mask = Image.new("L", (128, 64))
    mask.paste(255, (0, 0, 64, 64))
    mask.save(tmp_path / "masks" / "a.png")
    chosen = settings(tmp_path, str(tmp_path / "masks"), buckets=False, random_crop=True)
    (batch,) = epoch_batches(scan(chosen), chosen, 1, 1, 1)
    masks = Masks(chosen)
    # White are the left 64 columns of 128; a cut of 64 that begins at 0, 48 or 64 shows 64, 16 or none of them.
    for left, flip, white in ((0, False, range(8)), (48, False, range(2)), (48, True, range(6, 8)), (64, False, ())):
        look = Look(flip=flip, cut=(left, 0))
        shown = masks.of(Batch(batch.items, batch.captions, (look,), 64, 64), 8, 8)[0, 0]
        expected = torch.zeros(8, 8)
        expected[:, list(white)] = 1
        assert torch.equal(shown, expected), look


def test_masks_are_read_once_before_they_are_needed_however_pictures_are_mirrored_and_coloured(folder):
    chosen = settings(folder, str(folder / "masks"))
    batch, masks = batch_of(chosen), Masks(chosen)
    assert list(masks.fill(batch.items, latent_factor=8)) == [(1, 2), (2, 2)]
    plain = masks.of(batch, 8, 8)
    (folder / "masks" / "a.jpg").write_bytes(b"broken since")
    for look in (Look(), Look(hue=3.0), Look(gamma=0.97), Look(flip=True, hue=-5.5)):
        shown = masks.of(Batch(batch.items, batch.captions, (look, look), 64, 64), 8, 8)
        assert torch.equal(shown, plain.flip(-1) if look.flip else plain)


def test_a_mask_of_sixteen_bits_keeps_its_shades(folder):
    grey = np.full((64, 64), 0x8000, np.uint16)
    grey[:, 32:] = 0x0200  # nearly black, though above 255
    Image.fromarray(grey).save(folder / "masks" / "b.png")
    chosen = settings(folder, str(folder / "masks"))
    mask = Masks(chosen).of(batch_of(chosen), 8, 8)[1, 0]
    assert torch.allclose(mask[:, :4], torch.full((8, 4), 128 / 255))
    assert torch.allclose(mask[:, 4:], torch.full((8, 4), 2 / 255))


def test_transparency_is_a_mask_when_asked(folder):
    picture = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 64, 32))
    picture.save(folder / "b.png")
    chosen = settings(folder, alpha_masks=True)
    masks = create_masks(chosen).of(batch_of(chosen), 8, 8)
    assert (masks[0] == 1).all()
    assert (masks[1, 0, :4] == 0).all()
    assert (masks[1, 0, 4:] == 1).all()
    assert create_masks(settings(folder)) is None
    # Beside masks of a folder, transparency counts only when asked.
    for asked in (True, False):
        mixed = settings(folder, str(folder / "masks"), alpha_masks=asked)
        found = create_masks(mixed).of(batch_of(mixed), 8, 8)
        assert found[0].min() < 0.02
        assert (found[1] == 1).all() == (not asked)


def test_a_mask_folder_that_fits_no_picture_is_named(folder):
    (folder / "masks" / "a.jpg").rename(folder / "masks" / "z.jpg")
    with pytest.raises(PlainError, match=r"no file there is named like a picture"):
        Masks(settings(folder, str(folder / "masks")))
    with pytest.raises(PlainError, match=r"There is no folder"):
        scan(settings(folder, str(folder / "gone")))  # told before anything is loaded


def test_a_broken_mask_is_named(folder):
    (folder / "masks" / "a.jpg").write_bytes(b"no picture")
    chosen = settings(folder, str(folder / "masks"))
    batch = batch_of(chosen)
    for read in (lambda: Masks(chosen).of(batch, 8, 8), lambda: list(Masks(chosen).fill(batch.items, 8))):
        with pytest.raises(PlainError, match=r"The mask .*a\.jpg cannot be read"):
            read()


def test_a_masked_loss_is_sd_scripts():
    prediction, target = (torch.tensor(LOSSES[name]).view(LOSSES["shape"]) for name in ("pred", "target"))
    pixels = torch.tensor(LOSSES["masked"]["mask"]).view(-1, 1, *LOSSES["masked"]["mask_shape"][1:])
    mask = F.interpolate(pixels, size=prediction.shape[2:], mode="area")
    expected = torch.tensor(LOSSES["masked"]["per_sample"])
    assert torch.allclose(loss_per_image(prediction, target, "l2", mask=mask), expected, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_what_is_masked_out_counts_as_little_as_the_weight_says(weight):
    target, mask = torch.ones(1, 4, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    loss = weighted_loss_per_image(
        torch.zeros_like(target),
        target,
        torch.tensor([500]),
        torch.tensor([False]),
        LossSettings(unmasked_weight=weight),
        alphas_cumprod=torch.full((1000,), 0.5),
        snr=torch.ones(1000),
        prediction_type="epsilon",
        mask=mask,
    )
    assert loss.item() == pytest.approx((1 + 3 * weight) / 4)  # each place has a squared error of 1
