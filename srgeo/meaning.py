"""What the bands of a raster are (imagery, classes, alpha, elevation, radar...) and which samples are valid."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from pipelines.errors import InputError, UsageError
from pipelines.image import ChannelKind, Fact, ToldKind
from srgeo.description import Band, Description, Validity, fits
from srgeo.sensors import Sensor, identify

_CLASS_NAME = re.compile(
    r"(?:^|[^a-z0-9])(scl|qa|qa[_-]\w+|bqa|msk|msk[_-]\w+|fmask|class(?:es|ification)?|labels?|land[ _-]?(?:cover|use)"
    r"|lulc|cloud[ _-]?mask|mask|segmentation|doy|count|ids?)(?:[^a-z0-9]|$)"
)
_CLASS_STEM = re.compile(
    r"(?:^|[_-])(scl|qa[_-](?:pixel|radsat|aerosol)|bqa|msk|fmask|labels?|landcover|lulc|classes|classification)(?:[_-]|$)"
)
_ANGLE_NAME = re.compile(r"(?:^|[^a-z])(sza|saa|vza|vaa|azimuth|zenith|phase|aspect|angles?)(?:[^a-z]|$)")
_ANGLE_UNITS = ("deg", "degree", "degrees", "rad", "radian", "radians")
_ELEVATION_NAME = re.compile(
    r"(?:^|[^a-z])(dem|dtm|dsm|srtm|dted\d?|elev|elevation|bathymetry|height|altitude)(?:[^a-z]|$)"
)
_ELEVATION_STEM = re.compile(r"(?:^|[_-])(dem|dtm|dsm|srtm|dted|elev|elevation|bathymetry)(?:[_-]|$)")
_RADAR_NAME = re.compile(
    r"(?:^|[^a-z0-9])(vv|vh|hh|hv|(?:sigma|gamma|beta)[ _-]?(?:0|nought)|backscatter)(?:[^a-z0-9]|$)"
)
_INDEX_NAME = re.compile(r"(?:^|[^a-z])(ndvi|ndwi|ndmi|ndsi|nbr|evi|savi|mndwi)(?:[^a-z]|$)")
_THERMAL_NAME = re.compile(r"(?:^|[^a-z0-9])(tirs\d?|st_b10|thermal|brightness temperature)(?:[^a-z0-9]|$)")
_ALPHA_NAME = re.compile(r"^(a|alpha)( band)?$")
_IMAGE_NAME = re.compile(
    r"^(n|ir|nir\d?|(near[ _-]?)?infra[ _-]?red|red[ _-]?edge|re\d?|swir\d?|pan|b\d{1,2}a?|band[ _-]?\d+)$"
)
_VERTICAL = re.compile(r"\bVERT_?(CS|CRS)\[")
_RADAR_TAGS = ("POLARIZATION", "POLARISATION", "POLARIZATIONS", "POLARISATIONS")
_COLOUR_SPACES = ("CMYK", "CIELAB", "ICCLAB", "ITULAB")


@dataclass(frozen=True, slots=True)
class Meaning:
    """The chosen bands, in order.

    guesses: per band, see Channel.guess; nodata: per band, None where no value is invalid; alpha: number of the band
    that decides about the others, if one does; refusal: why no network may touch them, '' if one may.
    """

    bands: tuple[Band, ...]
    kinds: tuple[ChannelKind, ...]
    guesses: tuple[str, ...]
    validity: Validity
    nodata: tuple[float | int | None, ...]
    alpha: int | None
    sensor: Sensor | None
    refusal: str = ""
    modality: str = "optical"
    facts: dict[str, Fact] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def may_have_invalid(self) -> bool:
        """False only for integers of which every sample is valid."""
        return self.validity != "all" or any("float" in b.dtype for b in self.bands)


@dataclass(slots=True)
class _Findings:
    """What is noted on the way."""

    facts: dict[str, Fact] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


_Kinds = tuple[tuple[Band, ChannelKind], ...]


def meaning(
    description: Description,
    stem: str,
    chosen: tuple[int, ...] | None = None,
    told_nodata: float | None = None,
    told_kind: ToldKind | None = None,
) -> Meaning:
    """What the chosen bands mean. stem: of the file's name; chosen: band numbers from 1, None for all.

    Raises UsageError for bands or a nodata value that cannot be, InputError for samples that must not be
    super-resolved.
    """
    bands = _chosen(description, chosen)
    _refuse_samples(description, bands)
    found = _Findings()
    if chosen is not None:
        found.facts["bands"] = Fact(", ".join(map(str, chosen)), origin="told")
    sensor = identify(description.tags)
    alpha = _alpha_band(description, found)
    kinds, guesses = zip(*(_kind(b, description, stem, alpha, told_kind, found) for b in bands), strict=True)
    validity, nodata = _validity(description, tuple(zip(bands, kinds, strict=True)), alpha, sensor, told_nodata, found)
    refusal, modality = _refusal(description, bands, kinds, stem)
    if refusal:
        found.facts["refuse_networks"] = Fact(refusal)
        found.problems.append(f"{refusal}: networks are refused")
    _note_samples(description, bands, kinds, found)
    _note_place(description, found)
    return Meaning(
        bands=bands,
        kinds=kinds,
        guesses=guesses,
        validity=validity,
        nodata=nodata,
        alpha=alpha if validity == "alpha" else None,
        sensor=sensor,
        refusal=refusal,
        modality=modality,
        facts=found.facts,
        problems=tuple(found.problems),
    )


def _chosen(description: Description, chosen: tuple[int, ...] | None) -> tuple[Band, ...]:
    count = len(description.bands)
    numbers = tuple(range(1, count + 1)) if chosen is None else tuple(chosen)
    wrong = [n for n in numbers if not 1 <= n <= count]
    if wrong or not numbers or len(set(numbers)) != len(numbers):
        raise UsageError(
            what=f"bands {', '.join(map(str, numbers)) or 'none'} were asked of a raster with {count}",
            fix=f"give different numbers from 1 to {count}",
        )
    return tuple(description.bands[n - 1] for n in numbers)


def _refuse_samples(description: Description, bands: tuple[Band, ...]) -> None:
    types = {b.dtype for b in bands}
    if any("complex" in t for t in types):
        raise InputError(
            what="the samples are complex numbers",
            why="phase and speckle cannot be degraded by a sum of magnitudes",
            fix="give detected or reflectance imagery",
        )
    if types & {"int64", "uint64"}:
        raise InputError(
            what="the samples are 64-bit integers",
            why="the computation in float64 keeps only 53 bits",
            fix="write them as int32 or float64 if their digits allow it",
        )
    if len(types) > 1:
        raise InputError(
            what=f"the bands are of different types ({', '.join(sorted(types))})", fix="choose with --bands"
        )
    space = description.structure.get("SOURCE_COLOR_SPACE", "")
    if space.upper() in _COLOUR_SPACES:
        raise InputError(
            what=f"the image is stored as {space}",
            why="its bands are inks or a perceptual space, not what a sensor measured",
            fix="convert it to RGB first",
        )


def _alpha_band(description: Description, found: _Findings) -> int | None:
    """Number of the band that is alpha, by its colour and its name; the name wins."""
    number = None
    for b in description.bands:
        name = b.name.lower()
        if b.colour == "alpha" and _IMAGE_NAME.match(name):
            found.problems.append(f"band {b.index} is flagged as alpha but named '{b.name}': taken as imagery")
        elif b.colour == "alpha":
            number = b.index
            if len(description.bands) == 4 and not name and description.validity == "alpha":
                found.problems.append(
                    "band 4 is declared as alpha and decides what is valid; if it is infrared, clear that flag"
                )
        elif b.colour == "undefined" and _ALPHA_NAME.match(name) and len(description.bands) > 1:
            number = b.index
            found.problems.append(f"band {b.index} is named '{b.name}': taken as alpha")
    return number


def _kind(
    band: Band, description: Description, stem: str, alpha: int | None, told: ToldKind | None, found: _Findings
) -> tuple[ChannelKind, str]:
    """What a band is, and why if that is a guess (see Channel.guess)."""
    if band.index == alpha:
        return "alpha", ""
    text = f"band {band.index}" + (f" '{band.name}'" if band.name else "")
    declared = _declared_classes(band, only=len(description.bands) == 1)
    guess = "" if declared else _class_guess(band, description, stem)
    if declared or (guess and not told):
        way = "" if declared else "; if it is an image, say --kind image"
        found.problems.append(f"{text} {declared or guess}: replicated, not super-resolved{way}")
        return "classes", guess and f"{text} {guess}"
    if guess and told == "image":
        found.problems.append(f"{text} {guess}, but it is taken as an image: --kind says so")
    return ("classes" if told == "labels" else "image"), ""


def _declared_classes(band: Band, *, only: bool) -> str:
    """How the file itself says that a band holds classes or angles, '' if it does not."""
    tags = {k.upper(): v for k, v in band.tags.items()}
    if band.palette is not None and (band.colour == "palette" or only):
        return "has a palette"
    if band.has_categories or tags.get("LAYER_TYPE", "").lower() == "thematic":
        return "has categories"
    if band.bits == 1:
        return "has one bit"
    return "holds angles" if band.unit.lower() in _ANGLE_UNITS else ""


def _class_guess(band: Band, description: Description, stem: str) -> str:
    """Why a band is taken for classes or angles by its name or its file's, '' if it is not."""
    name, integer = band.name.lower(), "float" not in band.dtype
    if _CLASS_NAME.search(name) and integer:
        return "holds classes by its name"
    if len(description.bands) == 1 and integer and not name and _CLASS_STEM.search(stem.lower()):
        return "holds classes by the file's name"
    return "holds angles by its name" if _ANGLE_NAME.search(name) else ""


def _validity(
    description: Description,
    channels: _Kinds,
    alpha: int | None,
    sensor: Sensor | None,
    told: float | None,
    found: _Findings,
) -> tuple[Validity, tuple[float | int | None, ...]]:
    """What decides about validity, and the nodata value of each band."""
    none = (None,) * len(channels)
    if description.impossible_nodata and told is None:
        found.problems.append(
            "the nodata value declared cannot occur in the type of its band: no sample is invalid by it"
        )
    if told is not None and math.isnan(told) and all("float" not in b.dtype for b, _ in channels):
        found.facts["validity"] = Fact("all", "told")  # NaN: no value of these is nodata
        return "all", none
    if told is not None:
        _refuse_impossible(told, channels)
        return _by_nodata(channels, (told,) * len(channels), "told", found)
    if description.validity in ("mask", "band masks"):
        found.facts["validity"] = Fact("mask")
        if any(b.nodata is not None for b, _ in channels):
            found.problems.append("the file has a mask and a nodata value: the mask decides")
        return description.validity, none
    if any(b.nodata is not None for b in description.bands):
        return _by_nodata(channels, tuple(b.nodata for b, _ in channels), "header", found)
    if alpha is not None:
        found.facts["validity"] = Fact(f"alpha band {alpha}")
        return "alpha", none
    if sensor is not None and sensor.nodata is not None and all("float" not in b.dtype for b, _ in channels):
        found.problems.append(f"no nodata is declared: {sensor.nodata:g} is nodata in {sensor.name} products")
        return _by_nodata(channels, (sensor.nodata,) * len(channels), "assumed", found)
    return "all", none


def _refuse_impossible(nodata: float, channels: _Kinds) -> None:
    dtypes = {band.dtype for band, kind in channels if kind != "alpha" and not fits(nodata, band.dtype)}
    if dtypes:
        raise UsageError(
            what=f"--nodata {nodata:g} cannot occur in {dtypes.pop()}",
            why="no sample would be invalid by it",
            fix="give a value that the file holds, or nan if none is nodata",
        )


def _by_nodata(
    channels: _Kinds, values: tuple[float | int | None, ...], origin: str, found: _Findings
) -> tuple[Validity, tuple[float | int | None, ...]]:
    used: list[float | int | None] = []
    for (band, kind), value in zip(channels, values, strict=True):
        possible = value is not None and fits(value, band.dtype)
        if value is not None and not possible and kind != "alpha":
            found.problems.append(
                f"nodata {value:g} of band {band.index} cannot occur in {band.dtype}: no sample is invalid by it"
            )
        used.append(value if possible and kind != "alpha" else None)
    different = sorted({_text(v) for v, (_, k) in zip(used, channels, strict=True) if k != "alpha"})
    found.facts["nodata"] = Fact(", ".join(different), origin=origin)
    return "all" if all(v is None for v in used) else "nodata", tuple(used)


def _text(value: float | int | None) -> str:
    """Never a NaN: two headers of one file must be equal."""
    if value is None:
        return "none"
    return "nan" if math.isnan(value) else f"{value:.17g}"


def _refusal(
    description: Description, bands: tuple[Band, ...], kinds: tuple[ChannelKind, ...], stem: str
) -> tuple[str, str]:
    """(why networks must not touch the image bands, modality)."""
    image = [b for b, k in zip(bands, kinds, strict=True) if k == "image"]
    names = [b.name.lower() for b in image]
    tags: dict[str, Any] = {k.upper(): v for k, v in description.tags.items()}
    if any(_RADAR_NAME.search(n) for n in names) or any(t in tags for t in _RADAR_TAGS):
        return "radar backscatter: speckle is multiplicative and the noise model does not hold", "radar"
    if any(b.unit.lower() in ("db", "decibel") for b in image):
        return "decibels: a mean of logarithms is not what the sensor averages", "radar"
    if len(description.bands) == 1 and image:
        metres = image[0].unit.lower() in ("m", "metre", "meter", "metres", "meters", "ft", "foot", "feet")
        vertical = description.crs is not None and _VERTICAL.search(str(description.crs.to_wkt())) is not None
        named = _ELEVATION_NAME.search(names[0]) or _ELEVATION_STEM.search(stem.lower())
        if metres or vertical or named or any(t.startswith("DTED_") for t in tags):
            return "elevation: slopes and aspects of an invented surface are wrong", "elevation"
    return "", "optical"


def _note_samples(
    description: Description, bands: tuple[Band, ...], kinds: tuple[ChannelKind, ...], found: _Findings
) -> None:
    compression = description.structure.get("COMPRESSION", "")
    lossless = description.structure.get("COMPRESSION_REVERSIBILITY", "").upper() == "LOSSLESS"
    if re.search(r"JPEG|WEBP|JXL|LERC", compression.upper()) and not lossless:
        found.problems.append(f"{compression} compression may have lost detail; its block marks are part of the input")
    for b, kind in zip(bands, kinds, strict=True):
        if kind == "image" and _INDEX_NAME.search(b.name.lower()):
            found.problems.append(
                f"band {b.index} '{b.name}' is an index: super-resolve the bands and compute it again"
            )
        if kind == "image" and _THERMAL_NAME.search(b.name.lower()):
            found.problems.append(f"band {b.index} '{b.name}' is thermal: the sensor resolves far less than its grid")


def _note_place(description: Description, found: _Findings) -> None:
    if description.subdatasets:
        found.problems.append("the file holds several images: the first is read")
    if description.transform is None and description.gcps:
        found.problems.append("placed by ground control points only: the grid is in pixels, the points are rescaled")
    elif description.transform is None and description.rpcs:
        found.problems.append("placed by RPC only: the grid is in pixels, the RPC are rescaled")
    elif description.transform is None:
        found.problems.append("no georeference: the grid is in pixels")
    elif description.crs is None:
        found.problems.append("no CRS: the unit of the grid is unknown")
    if description.transform is not None and description.gcps:
        found.problems.append(
            "ground control points beside a transform: the transform counts and the points are dropped"
        )
    if "TRUESCALE_MODEL" in description.tags:
        found.problems.append("this is already a super-resolved product")
