"""Whether a run can train at all, found before references and labels are built for it."""

import torch

from reco_ray.config import Settings, TrainSettings
from reco_ray.errors import RecoError, reason
from reco_ray.training.network import build_network

_ONE_VALUE = "more than 1 value per channel"  # what PyTorch says of a norm over a single value


def require_network(settings: Settings) -> None:
    """Builds the network and passes crops of noise through it, as many as a pass of the training has, two at most.

    Raises:
        RecoError: an unknown network, missing weights, a number or size of crops that the network does not take.
    """
    train = settings.train
    network = build_network(train.segmenter, 2, initial=train.initial, weights_folder=settings.models.weights)
    crops = train.batch_size // train.workers // train.accumulate
    pixels = torch.zeros(min(crops, 2), train.crop, train.crop, 3, dtype=torch.uint8)
    network.module.train()
    if not train.encoder_learning_rate:
        network.encoder.eval()  # as in training
    try:
        with torch.no_grad():
            network.module(network.transform.normalize(pixels))
    except Exception as error:  # whatever a network raises
        raise RecoError(_advice(train, crops, network.stride, error)) from error


def _advice(train: TrainSettings, crops: int, stride: int, error: Exception) -> str:
    """Which setting to change."""
    if _ONE_VALUE in str(error):
        least = 2 * train.workers * train.accumulate
        return (
            f"train.batch_size={train.batch_size}, over train.workers={train.workers} and "
            f"train.accumulate={train.accumulate}, leaves {crops} crop a pass, and {train.segmenter} needs two: set "
            f"train.batch_size={least}, or lower train.accumulate"
        )
    if train.crop % stride:
        below = max(train.crop // stride, 1) * stride
        return (
            f"train.crop={train.crop} is no multiple of {stride}, as {train.segmenter} needs: set train.crop={below} "
            f"or {below + stride}"
        )
    return f"train.segmenter={train.segmenter} takes no crops of {train.crop} pixels: {reason(error)}"
