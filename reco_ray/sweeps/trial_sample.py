"""The feature sample over which a trial's scores are calibrated, taken from encoded images that trials share."""

from reco_ray.errors import UnreadableError
from reco_ray.models.dense import DenseFeatures
from reco_ray.models.feature_sample import from_bytes, sample_features, to_bytes
from reco_ray.sweeps.encoded_images import Encoded, View, cached_models, features_of


def images_of_sample(images: list[str], corpus: list[str], count: int) -> list[str]:
    """URIs of the images to calibrate over: of those that are segmented if they are enough, else of the corpus.

    Args:
        images: that are segmented, in random order; the first ones are taken, which every trial encodes.
        corpus: evenly spaced images of the corpus, at most `count`.
        count: as `segment.calibrate`.
    """
    return corpus if len(images) < count else images[:count]


def take_sample(view: View, device: str, *encoded: Encoded) -> DenseFeatures:
    """Samples encoded images, as the stages do; those that cannot be used are passed over.

    Args:
        view: of the images.
        device: as of `cached_models`.
        *encoded: The images.

    Raises:
        UnreadableError: If none of them can be used.
    """
    usable = [number for number, image in enumerate(encoded) if image.reason is None]
    if not usable:
        first = encoded[0]
        raise UnreadableError(f"{first.uri}: {first.reason}: none of {len(encoded)} images can be used")
    models = cached_models(view.models, view.seed, device)
    samples = [
        sample_features(features_of([encoded[number]], device, models.classes), number) for number in usable
    ]
    return from_bytes(to_bytes(samples))
