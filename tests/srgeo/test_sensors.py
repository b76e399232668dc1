"""sensors.yaml: its form, and when a sensor is believed."""

from __future__ import annotations

from importlib.resources import files

import pytest
import yaml

from pipelines.degradation import Profile
from srgeo.sensors import identify, sensors

SENTINEL_2_SET_1 = {
    "B01": 0.32, "B02": 0.26, "B03": 0.28, "B04": 0.24, "B05": 0.38, "B06": 0.34,
    "B07": 0.34, "B08": 0.26, "B8A": 0.33, "B09": 0.26, "B11": 0.22, "B12": 0.23,
}  # fmt: skip
"""ESA quality reports as used by SupReME and S2Sharp."""


def test_every_entry_is_complete_and_knows_its_source() -> None:
    entries = yaml.safe_load(files("srgeo").joinpath("sensors.yaml").read_text("utf-8"))
    known = {"name", "source", "tags", "pattern", "mtf", "aliases", "nodata"}
    for entry in entries:
        assert set(entry) <= known
        assert len(entry["source"]) > 20
        assert all(t == t.upper() for t in entry["tags"])
        assert entry["pattern"].startswith("^")
        assert entry["mtf"]
    assert len({s.name for s in sensors()}) == len(sensors())
    for sensor in sensors():
        assert all(0 < m < 0.637 for m in sensor.mtf.values())  # a bare detector has 2 / pi
        assert set(sensor.aliases.values()) <= set(sensor.mtf)
        assert all(name == name.upper() for name in sensor.mtf)
        assert sensor.nodata is None or isinstance(sensor.nodata, int)


def test_sentinel_2_has_the_published_values_under_all_its_band_names() -> None:
    sensor = identify({"SPACECRAFT_NAME": "Sentinel-2A"})
    assert sensor is not None
    assert dict(sensor.mtf) == SENTINEL_2_SET_1
    for name in ("B2", "B02", "b02", "B02 (490 nm)", "B2, central wavelength 490 nm", "Band 2"):
        assert sensor.profile(name) == Profile("mtf", 0.26)
    for name in ("B8A", "b8a", "B8A, central wavelength 865 nm"):
        assert sensor.profile(name) == Profile("mtf", 0.33)
    for name in ("B10", "SCL", "", "blue", "B020"):
        assert sensor.profile(name) is None


@pytest.mark.parametrize(
    "tags",
    [
        {"SPACECRAFT_NAME": "Sentinel-2B"},
        {"platform": "sentinel-2c"},
        {"DATATAKE_1_SPACECRAFT_NAME": "Sentinel-2A"},
        {"PRODUCT_URI": "S2A_MSIL2A_20230101T101010_N0509_R022_T32UPU_20230101T131313.SAFE"},
        {"PRODUCT_TYPE": "S2MSI1C"},
        {"SATELLITE": "SENTINEL2A"},
    ],
)
def test_metadata_that_names_sentinel_2_is_believed(tags: dict[str, str]) -> None:
    sensor = identify(tags)
    assert sensor is not None
    assert sensor.name == "Sentinel-2 MSI"
    assert sensor.nodata == 0


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"QUANTIFICATION_VALUE": "10000"},
        {"SOURCE": "a crop of a Sentinel-2A scene"},
        {"SPACECRAFT_NAME": "Sentinel-1A"},
        {"SPACECRAFT_NAME": "Sentinel-3A"},
        {"PLATFORM": "like Sentinel-2A"},
        {"PLATFORM": "Sentinel-20"},
        {"LANDSAT_PRODUCT_ID": "LC08_L2SP_218074_20190114_20200829_02_T1"},
        {"PLATFORM": "Sentinel-2A", "SATELLITE": "QuickBird"},
    ],
)
def test_anything_less_is_not(tags: dict[str, str]) -> None:
    assert identify(tags) is None


@pytest.mark.parametrize(
    ("said", "band", "value"),
    [
        ("QB02", "Pan", 0.15),
        ("WV03", "red edge", 0.36),
        ("WorldView-2", "N2", 0.27),
        ("IKONOS-2", "nir", 0.28),
        ("GE01", "R", 0.23),
        ("WV04", "pan", 0.16),
    ],
)
def test_commercial_sensors_are_known_by_their_identifiers(said: str, band: str, value: float) -> None:
    sensor = identify({"SATELLITEID": said})
    assert sensor is not None
    assert sensor.profile(band) == Profile("mtf", value)
