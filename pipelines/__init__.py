"""Super-resolution whose product explains its input: `import pipelines as ts`.

    report = ts.upscale("t2_axial.nii.gz", "t2_iso.nii.gz", spacing=1.0)

Names load on first use (PEP 562), so importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines import errors as errors
    from pipelines.card import ModelCard as ModelCard
    from pipelines.degradation import Degradation as Degradation
    from pipelines.degradation import Profile as Profile
    from pipelines.formats import open_source as open
    from pipelines.grid import Box as Box
    from pipelines.grid import Factor as Factor
    from pipelines.grid import Frame as Frame
    from pipelines.grid import Grid as Grid
    from pipelines.image import ArraySource as ArraySource
    from pipelines.image import Channel as Channel
    from pipelines.image import Header as Header
    from pipelines.image import Sink as Sink
    from pipelines.image import Source as Source
    from pipelines.image import Told as Told
    from pipelines.inspection import check as verify
    from pipelines.inspection import inspect as inspect
    from pipelines.planning import Plan as Plan
    from pipelines.projection import project as project
    from pipelines.report import RunReport as RunReport
    from pipelines.request import Request as Request
    from pipelines.runner import ingest as ingest
    from pipelines.runner import plan as plan
    from pipelines.runner import upscale as upscale
    from pipelines.runner import upscale_array as upscale_array

_WHERE = {
    "ArraySource": "image:ArraySource",
    "Box": "grid:Box",
    "Channel": "image:Channel",
    "Degradation": "degradation:Degradation",
    "Factor": "grid:Factor",
    "Frame": "grid:Frame",
    "Grid": "grid:Grid",
    "Header": "image:Header",
    "ModelCard": "card:ModelCard",
    "Plan": "planning:Plan",
    "Profile": "degradation:Profile",
    "Request": "request:Request",
    "RunReport": "report:RunReport",
    "Sink": "image:Sink",
    "Source": "image:Source",
    "Told": "image:Told",
    "ingest": "runner:ingest",
    "inspect": "inspection:inspect",
    "open": "formats:open_source",
    "plan": "runner:plan",
    "project": "projection:project",
    "upscale": "runner:upscale",
    "upscale_array": "runner:upscale_array",
    "verify": "inspection:check",
}

__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("pipelines.errors")
    if name not in _WHERE:
        raise AttributeError(f"module 'pipelines' has no attribute '{name}'")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(f"pipelines.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*__all__, "errors"])
