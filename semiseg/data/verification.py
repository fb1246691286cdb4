"""Read a prepared dataset again and compare it with its digests."""

from collections.abc import Iterator
from pathlib import Path

from semiseg.base.errors import UserError
from semiseg.base.files import file_sha256
from semiseg.base.parallel import mapped
from semiseg.data import replacing
from semiseg.data.contents import Pair, content
from semiseg.data.prepared import PreparedDataset, check_files, read_files


def changed(dataset: PreparedDataset) -> Iterator[str]:
    """Yield a line for each list, image and mask that is gone, cannot be read, or holds something else."""
    try:
        check_files(dataset)
    except UserError as error:
        yield str(error)
        return
    folder, layout, files = dataset.folder, dataset.layout, read_files(dataset.folder)
    images = [name for name in files if name.startswith(f"{layout.images}/")]
    masks = [layout.mask(name[len(layout.images) + 1 :].removesuffix(Path(name).suffix)) for name in images]
    for name in sorted(files.keys() - {*images, *masks}):
        if not (folder / name).is_file():
            yield f"{folder / name}: not there any more"
        elif file_sha256(folder / name) != files[name]:
            yield f"{folder / name}: not the list of ids that was prepared"
    pairs = [
        Pair(folder / image, folder / mask if mask in files else None, len(dataset.classes))
        for image, mask in zip(images, masks, strict=True)
    ]
    names = zip(images, masks, strict=True)
    for (image, mask), found in zip(names, mapped(content, pairs, f"read {folder}"), strict=True):
        yield from found.problems
        for name, sha256 in ((image, found.image), (mask, found.mask)):
            if sha256 is not None and sha256 != files[name]:
                yield f"{folder / name}: its pixels are not those that were prepared"


def foreign(dataset: PreparedDataset) -> list[str]:
    """Return a line for each file in the dataset's folder that was not prepared."""
    return [
        f"{dataset.folder / name}: not among the prepared files; move it away"
        for name in replacing.foreign(dataset.folder)
    ]
