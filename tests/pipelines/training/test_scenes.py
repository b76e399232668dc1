from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from pipelines.errors import InputError
from pipelines.training.config import TrainingConfig
from pipelines.training.scenes import Scenes, hashed, scenes_of
from tests.pipelines.files import write_raster
from tests.srmed.make_dicom import Series


def found(config: Path, data: Path, tmp_path: Path) -> Scenes:
    return scenes_of(TrainingConfig.read(config), data, tmp_path / "copies")


@pytest.mark.parametrize("kind", ["volumes", "rasters"])
def test_samples_are_those_of_the_file(
    config: Callable[..., Path], data_folder: Path, tmp_path: Path, kind: str
) -> None:
    scenes = found(config(kind), data_folder, tmp_path)
    scene = next(s for s in (*scenes.train, *scenes.held_out) if s.name.startswith(("v1", "r1")))
    if kind == "volumes":
        stored = np.asarray(nibabel.load(data_folder / kind / scene.name).dataobj)
        stored = np.flip(stored.transpose(2, 1, 0), axis=(1, 2)) if scene.shape != stored.shape else stored
        assert sorted(stored.shape) == sorted(scene.shape)
        whole = scene.read(0, (0, 0, 0), scene.shape)
        assert np.array_equal(np.sort(whole.ravel()), np.sort(stored.ravel()))
        part = scene.read(0, (5, 3, 30), (20, 22, 2)[: whole.ndim])
        assert np.array_equal(part, whole[5:25, 3:25, 30:32])
    else:
        part = scene.read(0, (31, 40), (20, 30))
        assert np.array_equal(part, scene.read(0, (0, 0), scene.shape)[31:51, 40:70])


def test_both_sides_of_the_split_have_images_and_share_none(
    config: Callable[..., Path], data_folder: Path, tmp_path: Path
) -> None:
    for share in (0.01, 0.5, 0.9):
        scenes = found(config("rasters", f"held_out_share: {share}"), data_folder, tmp_path)
        names = [{s.name for s in side} for side in (scenes.train, scenes.held_out)]
        assert all(names)
        assert not names[0] & names[1]
        assert len(names[0] | names[1]) == 3


def test_the_split_is_by_the_name_alone_and_by_subfolder(
    config: Callable[..., Path], data_folder: Path, tmp_path: Path
) -> None:
    one = tmp_path / "own"
    for place in ("a", "b"):
        (one / place).mkdir(parents=True)
        for n in range(3):
            shutil.copy(data_folder / "rasters" / f"r{n}.tif", one / place / f"{place}{n}.tif")
    scenes = found(config("rasters", "held_out_share: 0.5"), one, tmp_path)
    assert {s.group for s in scenes.train}.isdisjoint({s.group for s in scenes.held_out})
    assert {s.group for s in scenes.held_out} == {min("ab", key=hashed)}
    assert "a0" not in scenes.told


def test_a_series_of_slices_is_a_volume(config: Callable[..., Path], data_folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(data_folder / "volumes", own)
    Series(slices=30, rows=20, columns=20, spacing=1.0, thickness=1.0, pixel_spacing=(1.0, 1.0)).write(own / "series")
    scenes = found(config("volumes"), own, tmp_path)
    assert "series" in {s.name for s in (*scenes.train, *scenes.held_out)}


def test_images_smaller_than_a_patch_are_left_out_with_the_patch_that_fits(
    config: Callable[..., Path], data_folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(data_folder / "rasters", own)
    write_raster(own / "small.tif", np.arange(400, dtype=np.uint16).reshape(1, 20, 20))
    scenes = found(config("rasters"), own, tmp_path)
    ((name, why),) = scenes.left_out
    assert name == "small.tif"
    assert "20x20 samples and a patch 24x24" in why
    with pytest.raises(InputError, match=r"none of the 4 images.*extent: "):
        found(config("rasters", "extent: 40"), own, tmp_path)


def test_a_folder_without_images_is_refused(config: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"no training data found.*holds no volumes"):
        found(config("volumes"), tmp_path / "own", tmp_path)


def test_images_without_valid_samples_or_contrast_are_left_out(
    config: Callable[..., Path], data_folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(data_folder / "rasters", own)
    write_raster(own / "nan.tif", np.full((1, 40, 40), np.nan, np.float32))
    write_raster(own / "flat.tif", np.full((1, 40, 40), 7, np.uint16))
    scenes = found(config("rasters"), own, tmp_path)
    assert {name for name, _ in scenes.left_out} == {"nan.tif", "flat.tif"}


def test_label_maps_are_truths_of_synthetic_contrasts_only(
    config: Callable[..., Path], data_folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(data_folder / "volumes", own)
    classes = np.zeros((34, 30, 32), np.uint8)
    classes[5:20, 6:25, 3:28], classes[10:15, 10:20, 8:20] = 1, 2
    nibabel.save(nibabel.Nifti1Image(classes, np.eye(4)), own / "seg.nii.gz")
    scenes = found(config("volumes"), own, tmp_path)
    assert [name for name, _ in scenes.left_out] == ["seg.nii.gz"]
    scenes = found(config("volumes", "augment: {synthetic: 0.5}"), own, tmp_path)
    assert not scenes.left_out
    assert any(s.labels and not s.channels for s in (*scenes.train, *scenes.held_out))


def test_a_changed_file_is_copied_again(config: Callable[..., Path], data_folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(data_folder / "rasters", own)
    before = found(config("rasters"), own, tmp_path)
    write_raster(own / "r0.tif", np.arange(4200, dtype=np.uint16).reshape(1, 60, 70))
    after = found(config("rasters"), own, tmp_path)
    paths = [{s.name: s.path for s in (*x.train, *x.held_out)} for x in (before, after)]
    assert paths[0]["r0.tif"] != paths[1]["r0.tif"]
    assert paths[0]["r1.tif"] == paths[1]["r1.tif"]
