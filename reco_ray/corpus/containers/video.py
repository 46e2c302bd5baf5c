"""Frames of videos, sampled at a rate and addressed by time: `clip.mp4#t=12.5`. PyAV decodes (extra `video`)."""

import io
import re
from collections.abc import Iterator
from typing import Any

from PIL import Image

from reco_ray.corpus.containers import ReadOptions
from reco_ray.errors import MissingPackageError, reason
from reco_ray.files import filesystems as stores
from reco_ray.files.retries import StoreUnavailable

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
KIND = "video"
_ADDRESS = re.compile(rf"(?P<clip>.*?({'|'.join(map(re.escape, SUFFIXES))}))#t=(?P<time>\d+(\.\d+)?)", re.I)


def require() -> None:
    """Raises MissingPackageError where PyAV is not installed."""
    _av()


def members(uri: str, options: ReadOptions) -> Iterator[tuple[str, bytes | OSError]]:
    """(`clip.mp4#t=12.5`, the frame as an uncompressed BMP) at the sampling rate, in order.

    The first frame at or after every multiple of 1 / `frames_per_second` seconds. What follows a place that cannot be
    decoded is given up: the clip itself comes last, with an error.

    Raises:
        OSError: it cannot be opened as a video.
        StoreUnavailable: it could not be read on.
    """
    av, per_second = _av(), options.frames_per_second
    with stores.open_file(uri) as file:
        try:
            with av.open(file) as clip:
                due = 0
                for frame in _frames(clip):
                    if frame.time is not None and round(frame.time * per_second, 6) >= due:
                        due = int(round(frame.time * per_second, 6)) + 1
                        yield _address(uri, frame.time), _bmp(frame)
        except StoreUnavailable:
            raise
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            yield uri, OSError(f"damaged video: {reason(error)}")


def owns(address: str) -> bool:
    """Whether this is the address of a frame."""
    return _ADDRESS.fullmatch(address) is not None


def read(address: str, limit: int) -> bytes:
    """The frame at an address that `members` gave, byte for byte the same.

    Raises:
        OSError: it cannot be read.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise OSError("no address inside a video: expected clip.mp4#t=seconds")
    time = float(parts["time"])
    av = _av()
    try:
        with stores.open_file(parts["clip"]) as file, av.open(file) as clip:
            stream = clip.streams.video[0]
            clip.seek(max(0, int(time / stream.time_base)), stream=stream)  # to the key frame before it
            for frame in _frames(clip):
                if frame.time is not None and round(frame.time, 3) >= time:
                    return _bmp(frame)
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise OSError(f"damaged video: {reason(error)}") from error
    raise OSError("beyond the end of the video")


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingPackageError('videos need PyAV: pip install "reco-ray[video]"') from error
    return av


def _frames(clip: Any) -> Iterator[Any]:
    stream = clip.streams.video[0]
    stream.thread_type = (
        "NONE"  # loaders are many; threads would also change which frames a damaged clip gives
    )
    return clip.decode(stream)


def _address(uri: str, time: float) -> str:
    return f"{uri}#t={round(time, 3):g}" if time < 1000 else f"{uri}#t={round(time, 3):.3f}"


def _bmp(frame: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame.to_ndarray(format="rgb24")).save(buffer, "BMP")
    return buffer.getvalue()
