"""The section with decision regions: networks of a run, compressed further, on one plane through a test image."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hce_engine.backends.reference import mean_logits
from hce_engine.errors import InputError
from hce_engine.graph import Graph
from hce_engine.preprocess import InputSpec
from hce_engine.training.data import Split
from hce_engine.training.pictures.plane import answers, pruned_variants, quantized_variants, random_plane
from hce_engine.training.pictures.regions import decision_regions

from .blocks import Picture, Section

CALIBRATION_IMAGES = 512
CANDIDATES = 64  # test images among which the first that all members get right is looked for


def _chosen(graphs: Mapping[str, Graph], spec: InputSpec, test: Split, image: int | None, device: str) -> int:
    """``image``, or the first test image that every member gets right (the first of all if there is none)."""
    if image is not None:
        if not 0 <= image < len(test):
            raise InputError("--image", expected=f"0 to {len(test) - 1}", got=str(image), fix="name a test image")
        return image
    images, labels = test.images[:CANDIDATES].cpu().numpy(), test.labels[:CANDIDATES].cpu().numpy()
    right = np.logical_and.reduce([answers(g, spec, images, device).argmax(axis=1) == labels for g in graphs.values()])
    return int(right.argmax())


def regions_section(
    graphs: Mapping[str, Graph], spec: InputSpec, train: Split, test: Split, *, image: int | None, radius: float, side: int,
    seed: int, device: str, tell: Callable[[str], None],
) -> Section:
    """graphs: ``o`` with batch norms unfolded, and ``q`` and ``s`` where the run has them.  tell: hears what is being done.

    train, test: what the run was trained and tested on.  Raises InputError for an ``image`` that is not there.
    """
    index = _chosen(graphs, spec, test, image, device)
    centre, label = test.images[index].cpu().numpy(), int(test.labels[index])
    plane = random_plane(centre, radius, side, seed)
    tell("compressing O further for the decision regions")
    calibration = np.random.default_rng(seed).permutation(len(train))[:CALIBRATION_IMAGES]
    rows = {
        "quantized": {"O, 32-bit": graphs["o"], **quantized_variants(graphs["o"], train.images[calibration].cpu().numpy())},
        "pruned, not retrained": pruned_variants(graphs["o"]),
    }
    rows = {title: networks for title, networks in rows.items() if networks}
    predictions = {}
    for networks in rows.values():
        for name, graph in networks.items():
            tell(f"decision regions of {name}")
            predictions[name] = answers(graph, spec, plane.images, device).argmax(axis=1)
    where = (f"Decision regions on a random plane (seed {seed}) through test image {index}, a {test.class_names[label]}; the sides are "
             f"{2 * radius:g} codes of root mean square change per pixel.")
    section = Section("Decision regions", [Picture(
        "regions-compressed", decision_regions({t: list(n) for t, n in rows.items()}, predictions, plane, test.class_names, label),
        where + f" O after training: quantized with {len(calibration)} calibration images and re-estimated batch norms, or cut to a share of its "
        "parameters by filters' L1 norm; nothing is trained afterwards.",
        "Panels, " + "; ".join(f"{title}: {', '.join(networks)}" for title, networks in rows.items()) + ".", "png",
    )])
    members = {name: graph for name, graph in graphs.items() if name != "o"}
    if members:
        tell("decision regions of the members")
        logits = {name: answers(graph, spec, plane.images, device) for name, graph in members.items()}
        own = {"O": predictions["O, 32-bit"], **{name.upper(): z.argmax(axis=1) for name, z in logits.items()}}
        if len(logits) > 1:
            own["ensemble"] = mean_logits(list(logits.values())).argmax(axis=1)
        section.blocks.append(Picture(
            "regions-members", decision_regions({"": list(own)}, own, plane, test.class_names, label),
            "The same plane: the run's own members" + (" and their ensemble." if len(logits) > 1 else "."),
            "Panels of " + ", ".join(own) + ".", "png",
        ))
    return section
