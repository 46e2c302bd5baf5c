"""HEIC, in which telephones store photographs: read by pi-heif, which the extra `heic` installs.

pi-heif is pillow-heif without the encoder. The wheels of both bundle libheif and libde265 (LGPL-3.0); those of
pillow-heif bundle x265 too, which is GPL-2.0. pillow-heif serves as well where it is installed already.
"""

import re
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

SUFFIXES = (".heic", ".heif", ".hif")
PATTERN = f"(?i)({'|'.join(map(re.escape, SUFFIXES))})$"
MISSING = 'HEIC needs the extra heic: pip install "reco-ray[heic]"'
_PACKAGES = ("pi_heif", "pillow_heif")
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")


def is_heic(data: bytes) -> bool:
    """Whether a file's first bytes are those of HEIC (`mif1` may also begin an AVIF)."""
    return data[4:8] == b"ftyp" and data[8:12] in _BRANDS


def available() -> bool:
    """Whether a package that reads HEIC is installed."""
    return any(find_spec(name) is not None for name in _PACKAGES)


@lru_cache(maxsize=1)
def register() -> bool:
    """Adds the format "HEIF" to Pillow, once a process; False where no package reads it."""
    name = next((name for name in _PACKAGES if find_spec(name) is not None), None)
    if name is None:
        return False
    # One thread: Ray hands out cores by task. Previews, depth maps and other extra pictures are never wanted.
    import_module(name).register_heif_opener(
        decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
    )
    return True
