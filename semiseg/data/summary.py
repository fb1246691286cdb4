"""Tables that show at a glance whether a prepared dataset is as intended."""

from collections.abc import Sequence

from semiseg.data.prepared import VOID, PreparedDataset, read_manifest, read_origin


def summary(dataset: PreparedDataset) -> str:
    """Return tables of a prepared dataset: images and masks of each list, pixels and images of each class.

    The first line is its folder with the counts; warnings follow the tables.
    """
    manifest = read_manifest(dataset.folder) or {}
    counts, masks = manifest["counts"], manifest["masks"]
    images = ", ".join(f"{count} {listed}" for listed, count in counts.items())
    lines = [f"{dataset.folder}: {images} images, {len(dataset.classes)} classes", ""]
    rows: list[tuple[str, ...]] = [
        (listed, str(count), str(masks[listed]), str(count - masks[listed]))
        for listed, count in counts.items()
    ]
    lines += [*aligned([("list", "images", "with mask", "without"), *rows]), ""]
    header = ("class", *(f"{listed} {what}" for listed in counts for what in ("pixels", "images")))
    rows = [
        (name, *(str(manifest[what][listed][name]) for listed in counts for what in ("pixels", "occurs")))
        for name in (*dataset.classes, VOID)
    ]
    lines += aligned([header, *rows])
    return "\n".join([*lines, *warnings(dataset)])


def warnings(dataset: PreparedDataset) -> list[str]:
    """Return a line for each class that a list lacks, and one for the source's unlisted files."""
    manifest = read_manifest(dataset.folder) or {}
    lines = []
    for listed, counts in manifest["pixels"].items():
        absent = [name for name in dataset.classes if not counts[name]]
        if absent:
            lines.append(f"warning: no mask of '{listed}' holds {', '.join(absent)}; check masks and classes")
    unlisted = read_origin(dataset.folder).get("unlisted", [])
    if unlisted:
        shown = ", ".join(unlisted[:5]) + (", …" if len(unlisted) > 5 else "")
        lines.append(f"warning: files that no list names: {len(unlisted)} ({shown})")
    return lines


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Align rows in columns, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
