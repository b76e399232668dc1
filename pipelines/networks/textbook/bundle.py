"""Writing a network with its card, which holds what was traced and counted of it."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from pipelines.card import ModelCard
from pipelines.networks.textbook import axes_of, build
from pipelines.networks.textbook.blending import seam_share, windows
from pipelines.networks.textbook.field import traced
from pipelines.networks.textbook.network import Textbook
from pipelines.networks.weights import fill

COUNTED = 32
"""Least coarse samples per axis of the image that is counted."""

COPIES = 2.0
"""Bytes that a forward pass takes over those of its features: libraries put them into an order of their own."""

FIXED_BYTES = 60e6
"""Of torch's kernels, beside two copies of the weights."""


def write_bundle(
    net: Textbook, folder: Path, *, name: str, version: str = "1.0", samples: Tensor | None = None, **card: Any
) -> ModelCard:
    """The weights and the card of a network, NAME-VERSION.safetensors and .json.

    samples: normalised, (1, 1, *coarse): what a network that is not local changes where windows of it are blended is
    measured on them; card: other fields of it. Raises ModelError for one that says it is local and is not.
    """
    field = traced(net) if net.local else windows(net)
    kmac, held = counted(net)
    per_sample, fixed = math.ceil(held), FIXED_BYTES + 8.0 * sum(p.numel() for p in net.parameters())
    if not net.local:  # one window at a time; the sum of all of them stays
        fixed += held * math.prod(2 * h for h in field.halo)
        per_sample = 8 * math.prod(net.scale)
        if samples is not None:
            share = seam_share(net, samples, field.halo)
            card["figures"] = {**card.get("figures", {}), "seam_share": round(share, 4)}
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{name}-{version}.safetensors"
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in sorted(net.state_dict().items())}, weights)
    changed = [float(s) for s in net.scale if s > 1]
    made = ModelCard.from_json(
        {
            "name": name,
            "version": version,
            "network": "textbook",
            "options": net.options,
            "axes": axes_of(net.scale),
            "scales": [min(changed), max(changed)],
            "halo": list(field.halo),
            "multiple_of": list(field.multiple_of),
            "kmac_per_sample": round(kmac, 3),
            "bytes_per_sample": per_sample,
            "bytes_fixed": fixed,
            "local": net.local,
            "normalisation": "(x - median) / (99th - 1st percentile)",
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "weights_file": weights.name,
            **card,
        },
        folder,
    )
    made.write(folder / f"{made.id}.json")
    return made


def read_bundle(card: ModelCard) -> Textbook:
    """The network of a card with its verified weights, not yet certified. Raises ModelError."""
    card.verify()
    options = dict(card.options)
    net = build(str(options.pop("name", "")), options.pop("scale", ()), **options)
    fill(net, card)
    return net.eval()


def counted(net: Textbook) -> tuple[float, float]:
    """Thousand multiply-adds per fine sample, and peak bytes per coarse one, of one forward pass. Computes nothing."""
    shape = [m * math.ceil(COUNTED / m) for m in net.multiple_of]
    twin = copy.deepcopy(net).eval().to("meta")
    samples = torch.zeros(1, 1, *shape, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _Held() as held:
        made = twin(samples)
    return counter.get_total_flops() / 2000 / made.numel(), COPIES * held.most / samples.numel()


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """The most bytes that the results of operations held at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._held = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._held[storage] = storage.nbytes()
        self.most = max(self.most, sum(self._held.values()))  # type: ignore[no-untyped-call]
        return result
