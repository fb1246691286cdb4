"""The entry of a new dataset in params.yaml: its classes and shares, a protocol and a grid to begin with."""

import dataclasses
import json
import math
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import yaml

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.names import LONGEST, check_name
from semiseg.base.parameters import FULL, Params, Share
from semiseg.data import sources
from semiseg.data.inspection import Inspection
from semiseg.data.sources.folder import Config, own_folder

SECTIONS = ("grids", "protocols", "datasets")
SMALL = "-small"  # ends the names of the protocol and the grid for a laptop
RATIOS = (Fraction(1, 16), Fraction(1, 8), Fraction(1, 4), Fraction(1, 2))
FEWEST, FEWEST_ON_GPU = 4, 8  # labelled images of a share: the batches of ANCHORS
MULTIPLE = 16  # pixels: of a crop
DEFAULTS = {each.name: each.default for each in dataclasses.fields(Config)}  # of the source's options
ANCHORS = ("cpu", "gpu")  # protocols of params.yaml that the entry takes its other fields from

Entry = Mapping[str, str]
"""Lines by the section of params.yaml in which they stand, as they stand at its margin."""


def free_name(params: Params, folder: str) -> str:
    """Return a name for the dataset in ``folder`` that no dataset, protocol or grid has.

    Raises UserError if a dataset is made from this folder already, if it holds the suite's own data, and for
    a name that cannot be written.
    """
    if not folder.isprintable():
        raise UserError(f"{folder}: its name cannot be written in params.yaml; rename it")
    own = own_folder(folder)
    if Path(os.path.realpath(paths.DATA)).is_relative_to(os.path.realpath(own)):
        raise UserError(f"{folder}: holds the suite's own data; move your images to a folder of their own")
    for name, dataset in params.datasets.items():
        other = sources.user_folder(dataset)
        if other is not None and os.path.realpath(other) == os.path.realpath(own):
            raise UserError(f"{folder}: is the dataset '{name}' of params.yaml already; edit its entry there")
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", folder.rstrip("/").rpartition("/")[2]).strip("_-")
    plain = plain[: LONGEST - 20] or "mine"
    taken = {each.lower() for kind in (params.datasets, params.protocols, params.grids) for each in kind}
    for name in (plain, *(f"{plain}_{number}" for number in range(2, 1000))):
        try:
            check_name("datasets", name)
            check_name("grids", name)
        except UserError:
            continue
        free = not {name.lower(), name.lower() + SMALL} & taken
        if free and sources.are_apart(own, paths.dataset(name)):
            return name
    raise UserError(f"{folder}: names like '{plain}' are all taken in params.yaml; rename the folder")


def entry(name: str, found: Inspection) -> Entry:
    """Return the lines that make ``name`` a dataset with a grid for a laptop and one for a GPU."""
    masked = found.masks.get("train", 0)
    ratios, on_gpu = ([*map(str, shares(masked, fewest)), FULL] for fewest in (FEWEST, FEWEST_ON_GPU))
    quarter = "1/4" if "1/4" in ratios else ratios[0]
    small, large = geometry(found, 240, 128), geometry(found, 2048, 512 if found.long_side >= 1000 else 320)
    given = {name: value for name, value in vars(found.options).items() if value != DEFAULTS.get(name)}
    options = ", ".join(f"{option}: {_scalar(str(value))}" for option, value in given.items())
    classes = textwrap.fill(", ".join(class_names(found)), 110, subsequent_indent=" " * 5)
    dataset, protocol = _scalar(name), _scalar(name + SMALL)
    return {
        "grids": f"""\
{name}{SMALL}:
  title: "{name}, small"
  protocol: {protocol}
  shares: [{quarter}]
  recipes: [supervised, fixmatch]
  seeds: [0]
{name}:
  title: "{name}"
  protocol: {dataset}
  shares: [{", ".join(on_gpu)}]
  recipes: [supervised, cmb, dcc]
  seeds: [0, 1, 2]
""",
        "protocols": f"""\
{name}{SMALL}:  # minutes on a laptop
  <<: *cpu
  dataset: {dataset}
  geometry: {{base_size: {small[0]}, scale: [0.75, 1.5], crop: {small[1]}}}
  evaluation: {{long_side: {small[0]}, window: null, stride: null, flip: false, recalibrate: null}}
  steps: 200
  validate_every: 100
  judge_pseudo_labels: false
{name}:  # hours on a GPU
  <<: *gpu
  dataset: {dataset}
  geometry: {{base_size: {large[0]}, scale: [0.5, 2.0], crop: {large[1]}}}
  steps: 10000
  validate_every: 1000
  image_cache_mib: 1024
  methods:
    cmb: {{ramp_up_steps: 133, memory_lead_steps: 67}}  # the paper's share of the steps
""",
        "datasets": f"""\
{name}:
  source: folder
  classes:  # by the values of the masks; rename them
    [{classes}]
  options: {{{options}}}
  shares: {{{", ".join(f"{each}: {{}}" for each in ratios)}}}
""",
    }


def class_names(found: Inspection) -> list[str]:
    """Return a name for each class, to be replaced."""
    return [f"class_{value}" for value in range(found.num_classes)]


def shares(images: int, fewest: int) -> list[Fraction]:
    """Return the usual shares that label at least ``fewest`` of ``images``, and not all of them."""
    return [each for each in RATIOS if fewest <= Share(each).labelled_count(images) < images]


def geometry(found: Inspection, base_size: int, crop: int) -> tuple[int, int]:
    """Return a long side and a crop in pixels: at most those given, and at most what the images have."""
    base_size = min(base_size, found.long_side)
    short_side = base_size * found.short_side / found.long_side
    return base_size, max(MULTIPLE, min(crop, math.floor(short_side / MULTIPLE) * MULTIPLE))


def _scalar(text: str) -> str:
    """Write a text so that YAML reads it as this text."""
    plain = re.fullmatch(r"[A-Za-z_./~][\w./~ -]*|\d+/\d+", text, re.ASCII)
    return text if plain and yaml.safe_load(text) == text else json.dumps(text, ensure_ascii=False)


def inserted(text: str, new: Entry) -> str:
    """Return the ``text`` of params.yaml with an entry at the end of its sections, otherwise unchanged.

    Raises UserError if a section is missing, empty or written in braces, or if an anchor is missing.
    """
    for anchor in ANCHORS:
        if not re.search(rf"&{anchor}\b", text):
            raise UserError(
                f"params.yaml: no protocol has the anchor &{anchor}, as one of the suite's own has, and the "
                "entry needs it"
            )
    root = yaml.compose(text, yaml.SafeLoader)
    sections = {key.value: value for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
    places: list[tuple[int, str]] = []
    for section in SECTIONS:
        node = sections.get(section)
        if not isinstance(node, yaml.MappingNode) or node.flow_style or not node.value:
            raise UserError(
                f"params.yaml: {section}: not a map with an entry on each line; add the entry by hand"
            )
        margin = " " * node.value[0][0].start_mark.column
        lines = "".join(f"{margin}{line}\n" for line in new[section].splitlines())
        places.append((text.find("\n", max(_ends(node)) - 1), lines))
    ending = "\r\n" if "\r\n" in text else "\n"
    for place, lines in sorted(places, reverse=True):
        before, after = (text[: place + 1], text[place + 1 :]) if place >= 0 else (text + ending, "")
        text = before + lines.replace("\n", ending) + after
    return text


def _ends(node: yaml.Node) -> Iterator[int]:
    """Yield where each key and value of a block ends. An alias has the places of its anchor, further up."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        for each in node.value:
            for part in each if isinstance(each, tuple) else (each,):
                yield from _ends(part)
    else:
        yield node.end_mark.index
