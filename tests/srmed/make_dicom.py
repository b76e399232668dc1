"""A small classic DICOM series for tests, one file per slice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

CANARY = "Canary^Quentin"
"""Stands in every text that can identify a patient."""


@dataclass
class Series:
    """What to write. positions: (slices, 3) LPS mm, or None for slices `spacing` apart along the normal."""

    slices: int = 6
    rows: int = 5
    columns: int = 7
    spacing: float = 4.8
    thickness: float | None = 4.0
    modality: str = "MR"
    orientation: tuple[float, ...] = AXIAL
    origin: tuple[float, float, float] = (-30.0, -20.0, 10.0)
    pixel_spacing: tuple[float, float] = (0.9, 0.8)
    positions: NDArray[np.float64] | None = None
    stored: str = "uint16"
    number: int = 3
    names: Callable[[int], str] = field(default=lambda k: f"slice{k}")
    edit: Callable[[Dataset, int], None] = field(default=lambda ds, k: None)
    seed: int = 0

    def pixels(self) -> NDArray[np.generic]:
        """Stored samples (slices, rows, columns)."""
        shape = (self.slices, self.rows, self.columns)
        return np.random.default_rng(self.seed).integers(0, 1000, shape).astype(self.stored)

    def write(self, folder: Path) -> Path:
        """Write all slices into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        row, column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        steps = np.arange(self.slices)[:, None] * np.cross(row, column) * self.spacing
        positions = np.array(self.origin) + steps if self.positions is None else self.positions
        for k, pixels in enumerate(self.pixels()):
            ds = self.dataset(k, positions[k], pixels)
            self.edit(ds, k)
            ds.save_as(folder / self.names(k), enforce_file_format=True)
        return folder

    def dataset(self, k: int, position: NDArray[np.float64], pixels: NDArray[np.generic]) -> Dataset:
        """One slice."""
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = CTImageStorage if self.modality == "CT" else MRImageStorage
        ds.SOPInstanceUID = f"1.2.3.{self.number}.{k + 1}"
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", f"1.2.3.{self.number}"
        ds.FrameOfReferenceUID = "1.2.3.99"
        ds.PatientName, ds.PatientID, ds.PatientBirthDate = CANARY, CANARY, "19010203"
        ds.InstitutionName, ds.SeriesDescription, ds.StudyDescription = CANARY, CANARY, CANARY
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber = self.modality, self.number, k + 1
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if self.modality == "CT" else "M"]
        ds.ImagePositionPatient = [round(float(v), 6) for v in position]
        ds.ImageOrientationPatient = [round(float(v), 9) for v in self.orientation]
        ds.PixelSpacing = list(self.pixel_spacing)
        if self.thickness is not None:
            ds.SliceThickness = self.thickness
        if self.modality == "MR":
            ds.MRAcquisitionType, ds.MagneticFieldStrength, ds.EchoTime = "2D", 3.0, 80.0
        ds.Rows, ds.Columns = pixels.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        bits = 8 * pixels.dtype.itemsize
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
        ds.PixelRepresentation = int(pixels.dtype.kind == "i")
        ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        ds["PixelData"].VR = "OW"
        return ds
