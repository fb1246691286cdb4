"""A prepared dataset, read again from its files."""

import hashlib
from collections.abc import Iterator

from semiseg.base.errors import UserError
from semiseg.data.decoding import decode_image, decode_mask
from semiseg.data.prepared import PreparedDataset, read_manifest


def problems(dataset: PreparedDataset) -> Iterator[str]:
    """A line for each bad file: an image that does not open, a mask that is missing where it must be there,
    cannot be read, has another size than its image or a value that is no class; and one for a dataset that
    is no longer what its manifest says."""
    manifest = read_manifest(dataset.folder) or {}
    sha256, broken = hashlib.sha256(), False
    for listed, count in manifest["counts"].items():
        ids = dataset.ids(listed)
        if len(ids) != count:
            yield f"{dataset.folder}: {listed} has {len(ids)} images, the manifest says {count}"
        for each in ids:
            sha256.update(f"{listed}:{each}\n".encode())
            mask = dataset.mask_path(each)
            try:
                image = decode_image(dataset.image_path(each))
                if mask.exists() or listed != "train":
                    decode_mask(mask, image.shape[:2], len(dataset.classes))
                    sha256.update(mask.read_bytes())
            except UserError as error:
                broken = True
                yield str(error)
    if not broken and sha256.hexdigest() != manifest["digest"]:
        yield f"{dataset.folder}: its ids or masks are not those that were prepared"
