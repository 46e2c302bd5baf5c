"""Checks that a network can be trained, before references and labels are built for it."""

import torch

from reco_ray.config import Settings, TrainSettings
from reco_ray.errors import NoRoomError, SettingError, out_of_memory, reason
from reco_ray.training.network import build_network

_ONE_VALUE = "more than 1 value per channel"  # PyTorch's error for a norm over a single value


def require_network(settings: Settings) -> None:
    """Builds the network and runs it on a batch of crops, of the size in training but two at most.

    Raises:
        RecoError: the network is unknown, its weights are missing, or it does not support the number or size of crops.
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
    except Exception as error:  # networks raise any type
        kind = NoRoomError if out_of_memory(error) else SettingError
        raise kind(_advice(train, crops, network.stride, error)) from error


def _advice(train: TrainSettings, crops: int, stride: int, error: Exception) -> str:
    """Explains an error, and which setting to change."""
    if _ONE_VALUE in str(error):
        least = 2 * train.workers * train.accumulate
        return (
            f"train.batch_size={train.batch_size}, over train.workers={train.workers} and "
            f"train.accumulate={train.accumulate}, leaves {crops} crop per pass, and {train.segmenter} needs two: set "
            f"train.batch_size={least}, or lower train.accumulate"
        )
    if train.crop % stride:
        below = max(train.crop // stride, 1) * stride
        return (
            f"train.crop={train.crop} is not a multiple of {stride}, which {train.segmenter} needs: "
            f"set train.crop={below} or {below + stride}"
        )
    return f"train.segmenter={train.segmenter} does not support crops of {train.crop} pixels: {reason(error)}"
