"""The blur of known sensors, with sources (sensors.yaml). A sensor is recognised by what its metadata says of itself.

Band names and pixel sizes prove nothing: a wrong, too soft profile makes the projection sharpen what was never blurred.
So without a positive identification the default holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

from pipelines.degradation import Profile

DEFAULT_PROFILE = Profile("mtf", 0.3)
"""Of optical sensors about which nothing is known (forward model)."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """One entry of sensors.yaml.

    tags: names of metadata items, in capitals; pattern: what one of them must say; mtf: band name -> modulation at the
    Nyquist frequency; aliases: other names of bands; nodata: fill value of its products even where undeclared.
    """

    name: str
    source: str
    tags: tuple[str, ...]
    pattern: str
    mtf: Mapping[str, float]
    aliases: Mapping[str, str]
    nodata: int | None = None

    def profile(self, band_name: str) -> Profile | None:
        """The blur of a band by its name, None if the name is not one of this sensor's bands."""
        name = _plain(band_name)
        name = self.aliases.get(name, name)
        return Profile("mtf", self.mtf[name]) if name in self.mtf else None


def _plain(band_name: str) -> str:
    """'B2 (490 nm)', 'b02', 'B2, central wavelength 490 nm' -> 'B02'; other names in capitals, to the first bracket."""
    name = re.split(r"[,(]", band_name.upper())[0].strip()
    match = re.fullmatch(r"B(?:AND)?[ _-]?0?(\d{1,2})(A?)", name)
    return f"B{int(match[1]):02d}{match[2]}" if match and not match[2] else (f"B{match[1]}A" if match else name)


@lru_cache(maxsize=1)
def sensors() -> tuple[Sensor, ...]:
    """All entries of sensors.yaml."""
    entries: list[dict[str, Any]] = yaml.safe_load(files("srgeo").joinpath("sensors.yaml").read_text("utf-8"))
    return tuple(
        Sensor(
            name=entry["name"],
            source=entry["source"],
            tags=tuple(entry["tags"]),
            pattern=entry["pattern"],
            mtf={str(k): float(v) for k, v in entry["mtf"].items()},
            aliases={str(k): str(v) for k, v in entry.get("aliases", {}).items()},
            nodata=entry.get("nodata"),
        )
        for entry in entries
    )


def identify(tags: Mapping[str, str]) -> Sensor | None:
    """The sensor that the metadata of a file names, if they name exactly one that is known."""
    said = {key.upper(): value for key, value in tags.items()}
    found = [
        sensor
        for sensor in sensors()
        if any(tag in said and re.search(sensor.pattern, said[tag], re.IGNORECASE) for tag in sensor.tags)
    ]
    return found[0] if len(found) == 1 else None
