"""CLIP and related models of open_clip: any architecture with any of its pretrained tags.

Image and text embeddings as in Radford et al. (ICML 2021); dense features as in `clip_dense`.
"""

import difflib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from torch import nn

from reco_ray.errors import SettingError
from reco_ray.models import weights as weight_files
from reco_ray.models.clip_dense import ATTENTIONS, dense_features, dense_unsupported_reason, output_stride
from reco_ray.models.image import ImageTransform
from reco_ray.models.int8 import int8_tower, int8_unsupported_reason
from reco_ray.models.prompts import require_latin
from reco_ray.models.protocols import require_dense
from reco_ray.models.runtime import Runtime, fingerprint, resolve_runtime
from reco_ray.models.sliding import fit_to_stride
from reco_ray.models.text_cache import TextCache

TEXT_BATCH = 256
# Parts of the names of multilingual tokenizers; all others in open_clip are English.
MULTILINGUAL = ("xlm", "mt5", "nllb", "i18n", "siglip2")


class OpenClip:
    """A LanguageImageModel; see `load` for the accepted names."""

    def __init__(
        self,
        architecture: str,
        tag: str,
        attention: str | None = None,
        *,
        weights: str | None = None,
        device: str = "cpu",
        seed: int = 0,
        precision: str = "auto",
    ) -> None:
        int8 = precision == "int8"
        self.runtime: Runtime = resolve_runtime(device, "fp32" if int8 else precision, transformer=True)
        # Without the attention, which changes the dense features but not the embeddings of an index.
        self.spec = f"open_clip:{architecture}/{tag}"
        model, self._tokenize = _create(architecture, tag, weights, seed)
        self.attention = attention or "value"
        self.stride = output_stride(model.visual)
        self.dense_unsupported = dense_unsupported_reason(model.visual, self.attention)
        if attention and self.dense_unsupported:
            raise SettingError(f"{self.spec}@{attention}: {self.dense_unsupported}")
        self.transform = _image_transform(model)
        self._english_only = not _is_multilingual(architecture)
        settings = f"{self.transform} quick_gelu={_quick_gelu(architecture, tag)}"
        self.fingerprint = fingerprint(self.spec, model, settings)
        self.embedding_dim: int = open_clip.get_model_config(architecture)["embed_dim"]
        self._cache = TextCache(self.fingerprint)
        self.module = self.runtime.prepare(model)
        self._dense_tower: Any = self.module.visual
        if int8:
            self.module.visual = self._int8_tower()

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Resizes, crops and normalises: PIL image -> (3, size, size) float32."""
        pixels = torch.from_numpy(self.transform.crop(image.convert("RGB")).copy())
        return self.transform.normalize(pixels[None])[0]

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Embeds images: (b, 3, size, size) normalised, size that of `transform` -> (b, d) unit rows."""
        with self.runtime.inference():
            embeddings = self.module.encode_image(images.to(self.runtime.device))  # type: ignore[operator]
            return F.normalize(embeddings.float(), dim=1)

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeds n texts, truncated to the context length of the text encoder: (n, d) unit rows.

        Raises:
            SettingError: a text is in a script that the tokenizer was not trained on.
        """
        if self._english_only:
            require_latin(texts, self.spec)
        return self._cache.lookup(texts, self._embed, self.runtime.device)

    def encode_dense(self, images: torch.Tensor) -> torch.Tensor:
        """Embeds every location: (b, 3, H, W) normalised -> (b, d, H / stride, W / stride) unit vectors.

        H and W are resized to the nearest multiples of the stride first.

        Raises:
            SettingError: the image tower has no dense features.
        """
        require_dense(self)
        with self.runtime.inference():
            images = fit_to_stride(images.to(self.runtime.device), self.stride)
            return F.normalize(dense_features(self._dense_tower, images, self.attention).float(), dim=1)

    def _int8_tower(self) -> nn.Module:
        unsupported = int8_unsupported_reason(self._dense_tower)
        if self.runtime.device.type != "cpu":
            unsupported = f"int8 is for CPUs, this is {self.runtime.device}"
        if unsupported:
            raise SettingError(f"{self.spec} in int8: {unsupported}; take models.precision=auto")
        return int8_tower(self._dense_tower)

    def _embed(self, texts: list[str]) -> torch.Tensor:
        # Always in float32: each text is embedded once, and the cache is shared by all precisions.
        with torch.inference_mode():
            batches = (texts[start : start + TEXT_BATCH] for start in range(0, len(texts), TEXT_BATCH))
            tokens = (self._tokenize(batch).to(self.runtime.device) for batch in batches)
            return F.normalize(torch.cat([self.module.encode_text(t) for t in tokens]), dim=1)  # type: ignore[operator]


def load(name: str, *, weights: str | None, device: str, seed: int, precision: str) -> OpenClip:
    """Registry factory for `ARCHITECTURE/TAG[@ATTENTION]`; the tag "random" gives seeded random weights."""
    pair, _, attention = name.partition("@")
    architecture, tag = _parse_pair(pair)
    if attention and attention not in ATTENTIONS:
        raise SettingError(
            f"open_clip:{name}: unknown attention {attention!r}, choose {', '.join(ATTENTIONS)}"
        )
    return OpenClip(
        architecture, tag, attention or None, weights=weights, device=device, seed=seed, precision=precision
    )


def pull(name: str, stem: Path) -> Path:
    """Downloads the weights of `ARCHITECTURE/TAG`, its tokenizer and its text configuration to `stem`."""
    architecture, tag = _parse_pair(name)
    path = _download(architecture, tag)
    model = _create_from_file(architecture, tag, path, None)
    config = _text_config(architecture)
    if "hf_tokenizer_name" in config:
        _tokenizer(architecture, tag, None).save_pretrained(_text_folder(stem))
    if "hf_model_name" in config:
        model.text.config.save_pretrained(_text_folder(stem))
    return weight_files.write_state_dict(model.state_dict(), stem)


def prefetch(name: str, weights: str | None) -> None:
    """Downloads the weights of `ARCHITECTURE/TAG` into the cache; implements `weights.prefetch`."""
    architecture, tag = _parse_pair(name)
    if weight_files.local_file(f"open_clip:{architecture}/{tag}", weights) is None:
        _download(architecture, tag)


def _parse_pair(name: str) -> tuple[str, str]:
    architecture, _, tag = name.partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        close = difflib.get_close_matches(architecture, known, n=3, cutoff=0.4)
        hint = " or ".join(close) or "one of open_clip.list_models()"
        raise SettingError(f"unknown open_clip architecture {architecture!r}: did you mean {hint}?")
    if not tag:
        raise SettingError(
            f"open_clip:{name}: name its weights, {name}/TAG with TAG of {_tags(architecture)}"
        )
    return architecture, tag


def _create(architecture: str, tag: str, weights: str | None, seed: int) -> tuple[Any, Any]:
    """Returns the model with its weights, on the CPU, and its tokenizer."""
    if tag == "random":
        with weight_files.seeded(seed), _without_warnings():
            model = open_clip.create_model(architecture, pretrained_text=False)
        return model, _tokenizer(architecture, tag, None)
    path = weight_files.local_file(f"open_clip:{architecture}/{tag}", weights)
    folder = None if path is None else _text_folder(path.with_name(path.stem))
    if folder is not None and not folder.is_dir():
        folder = None
    model = _create_from_file(architecture, tag, path or _download(architecture, tag), folder)
    return model, _tokenizer(architecture, tag, folder)


def _download(architecture: str, tag: str) -> Path:
    config = open_clip.get_pretrained_cfg(architecture, tag)
    if not config:
        raise SettingError(
            f"open_clip:{architecture} has no weights {tag!r}: choose of {_tags(architecture)}"
        )
    with weight_files.from_hub(f"open_clip:{architecture}/{tag}"):
        return Path(open_clip.download_pretrained(config))


def _create_from_file(architecture: str, tag: str, path: Path, text_folder: Path | None) -> Any:
    spec = f"open_clip:{architecture}/{tag}"
    options: dict[str, Any] = {}
    text_config = _text_config(architecture)
    if text_folder is not None and "hf_model_name" in text_config:
        options["text_cfg"] = text_config | {"hf_model_name": str(text_folder), "hf_model_pretrained": False}
    try:
        with weight_files.from_file(path, spec):
            return open_clip.create_model(
                architecture,
                pretrained=str(path),
                # Activation and normalisation depend on the tag; the file does not contain them.
                force_quick_gelu=_quick_gelu(architecture, tag),
                force_preprocess_cfg=open_clip.get_pretrained_cfg(architecture, tag),
                **options,
            )
    except OSError as error:  # the configuration of some text encoders is on the hub
        raise weight_files.unreachable(spec, error) from error


def _tokenizer(architecture: str, tag: str, text_folder: Path | None) -> Any:
    config = _text_config(architecture)
    if "hf_tokenizer_name" not in config:
        return open_clip.get_tokenizer(architecture)
    if text_folder is None:
        with weight_files.from_hub(f"open_clip:{architecture}/{tag}"):
            return open_clip.get_tokenizer(architecture)
    return HFTokenizer(
        str(text_folder),
        context_length=config.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
        tokenizer_mode=config.get("tokenizer_mode"),
        **(config.get("tokenizer_kwargs") or {}),
    )


def _tags(architecture: str) -> str:
    return ", ".join([*open_clip.list_pretrained_tags_by_model(architecture), "random"])


def _text_folder(stem: Path) -> Path:
    """Folder beside a weights file with the tokenizer and text configuration that some architectures need."""
    return stem.with_name(stem.name + ".text")


def _text_config(architecture: str) -> dict[str, Any]:
    return open_clip.get_model_config(architecture)["text_cfg"]


def _quick_gelu(architecture: str, tag: str) -> bool:
    """Whether weights need QuickGELU instead of GELU, as OpenAI's and some others do."""
    config = open_clip.get_model_config(architecture)
    return bool(config.get("quick_gelu") or open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu"))


def _is_multilingual(architecture: str) -> bool:
    tokenizer = _text_config(architecture).get("hf_tokenizer_name", "").lower()
    return any(marker in tokenizer for marker in MULTILINGUAL)


def _image_transform(model: nn.Module) -> ImageTransform:
    config: Any = model.visual.preprocess_cfg  # type: ignore[union-attr]
    size = config["size"]
    return ImageTransform(
        size=size if isinstance(size, int) else size[0],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences open_clip's warning, on the root logger, that weights are random."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
