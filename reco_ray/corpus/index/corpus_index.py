"""Searches a corpus index: the nearest images to embeddings, optionally among those whose URI has a prefix."""

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.compute as pc

from reco_ray.contents import IndexContent
from reco_ray.corpus.image_groups import ImageGroups
from reco_ray.corpus.index.shard_files import ImageTable, open_trained, open_vectors, shard_files
from reco_ray.corpus.index.shard_search import search_shards
from reco_ray.errors import OtherModelError, SettingError, UnreadableError, reason
from reco_ray.faiss_library import inverted_file, load_faiss
from reco_ray.files import artifacts, storage


class CorpusIndex:
    """An opened index artifact, also of version 0.1 (a single flat file).

    Args:
        uri: URI of the artifact.
        model: Fingerprint of the model whose embeddings will be searched.
        duplicates: URI of groups of its near-duplicates, for `search_distinct`; None for none.

    Raises:
        RecoError: If it is missing, unfinished, damaged or was made with another model.
    """

    def __init__(self, uri: str, model: str, duplicates: str | None = None) -> None:
        load_faiss()
        self.uri = storage.absolute(uri)
        self.manifest = artifacts.read_manifest(uri, IndexContent)
        content = self.manifest.content
        if content.model != model:
            raise OtherModelError(
                f"{uri}: made with model {content.model}, but this run uses {model}: index the corpus with it"
            )
        shards = shard_files(self.uri, self.manifest)
        try:
            version = self.manifest.made_at
            self._trained = None if content.factory == "Flat" else open_trained(self.uri, version)
            self._indexes = [open_vectors(shard, self._trained, version) for shard in shards]
        except (OSError, RuntimeError) as error:
            raise UnreadableError(f"{uri}: damaged ({reason(error)}): delete it and index again") from error
        self.images = ImageTable(shards)
        self._nprobe = content.nprobe or 0
        self._groups = None if duplicates is None else self._open_groups(duplicates)
        self._matching = lru_cache(maxsize=1)(self._find_matching)

    @property
    def exact(self) -> bool:
        """Whether a search compares with the vectors of all images themselves."""
        return self._trained is None

    def _open_groups(self, uri: str) -> ImageGroups:
        groups = ImageGroups.open(uri)
        if (groups.content.index, groups.content.index_made_at) != (self.uri, self.manifest.made_at):
            raise OtherModelError(
                f"{uri}: has the near-duplicates of {groups.content.index}, made {groups.content.index_made_at}, not "
                f"of {self.uri}: run `reco-ray duplicates` with this index"
            )
        return groups

    def __len__(self) -> int:
        return sum(index.ntotal for index in self._indexes)

    def count(self, prefix: str) -> int:
        """Number of images whose URI begins with `prefix`; reads all URIs."""
        return self._matching(prefix)[1]

    def search(
        self, embeddings: np.ndarray, k: int, prefix: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the k nearest images of each embedding.

        Args:
            embeddings: float32 (n, d), rows of unit length.
            k: Number of neighbours, at most the number of images that match.
            prefix: Only images whose URI begins with it match; None for all images.

        Returns:
            Cosine similarities, float32 (n, k), descending, and rows of `images`, int64 (n, k).

        Raises:
            SettingError: If fewer than k images match.
        """
        bitmap, available = (None, len(self)) if prefix is None else self._matching(prefix)
        if k > available:
            raise SettingError(
                f"{self.uri}: {k} exemplars are asked for, but it has {available} images"
                f"{'' if prefix is None else f' under {prefix}'}: use --exemplars {available} or fewer"
            )
        queries = np.ascontiguousarray(embeddings, np.float32)
        selector = None if bitmap is None else load_faiss().IDSelectorBitmap(bitmap)
        lists = inverted_file(self._indexes[0])
        if lists is None:
            return search_shards(self._indexes, queries, k, 0, selector)
        # Expect as many candidates as without a prefix; search more lists while fewer than k of them match.
        nprobe = min(lists.nlist, -(-self._nprobe * len(self) // max(1, available)))
        while True:
            found = search_shards(self._indexes, queries, k, nprobe, selector)
            if nprobe == lists.nlist or (found[1] >= 0).all():
                return found
            nprobe = min(4 * nprobe, lists.nlist)

    def search_distinct(self, embeddings: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, but of near-duplicates, if their groups are known, only the nearest is found.

        Raises:
            SettingError: If there are fewer than k images that are no near-duplicates of each other.
        """
        if self._groups is None:
            return self.search(embeddings, k)
        count = k
        while True:
            similarities, rows = self.search(embeddings, count)
            ids = self.images.take(rows)["image_id"].to_pylist()
            groups = self._groups.of(ids)
            # Images without near-duplicates are groups of their own.
            names = np.array([groups.get(each, each) for each in ids], dtype=object).reshape(rows.shape)
            first = [_first_of_each(row) for row in names]
            fewest = min(map(len, first))
            if fewest >= k:
                places = np.array([each[:k] for each in first])
                taken = (np.take_along_axis(found, places, axis=1) for found in (similarities, rows))
                distinct, chosen = taken
                return distinct, chosen
            if count == len(self):
                raise SettingError(
                    f"{self.uri}: {k} exemplars are asked for, but without near-duplicates it has {fewest} images: use "
                    f"--exemplars {fewest} or fewer"
                )
            count = min(2 * count, len(self))

    def group_names(self, image_ids: list[str]) -> list[str]:
        """What the group of near-duplicates of each image is called; an image without any, its id."""
        groups = {} if self._groups is None else self._groups.of(image_ids)
        return [str(groups.get(each, each)) for each in image_ids]

    def _find_matching(self, prefix: str) -> tuple[Any, int]:
        """One bit per row, uint8, lowest bit first, and the number of bits set."""
        matches = np.zeros(len(self), bool)
        for start, uris in self.images.scan_uris():
            matches[start : start + len(uris)] = pc.starts_with(uris, prefix).to_numpy(zero_copy_only=False)
        return np.packbits(matches, bitorder="little"), int(matches.sum())


def _first_of_each(names: np.ndarray) -> list[int]:
    """Places of the first of each name, ascending."""
    first: dict[object, int] = {}
    for place, name in enumerate(names.tolist()):
        first.setdefault(name, place)
    return list(first.values())
