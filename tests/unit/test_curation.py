"""Images that a person chose: the file, what is refused, content ids, and where seeds may lie."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from images import photograph
from PIL import Image

from reco_ray.config import load_settings
from reco_ray.corpus.chosen import open_examples
from reco_ray.corpus.regions import crop_regions
from reco_ray.cosegmentation import cosegment
from reco_ray.cosegmentation.reference_plan import plan_references
from reco_ray.cosegmentation.references import reference_from_features
from reco_ray.cosegmentation.region_mask import allowed_locations
from reco_ray.errors import MissingError, RecoError, UsageError
from reco_ray.models.dense import DenseFeatures
from reco_ray.segmentation.evidence import calibrate, calibrated_logits, evidence_maps
from reco_ray.segmentation.score import concept_scores
from reco_ray.segmentation.target_set import Targets
from reco_ray.vocabulary import Concept, Vocabulary, load_vocabulary, make_vocabulary
from reco_ray.vocabulary.chosen_images import ChosenImage
from reco_ray.vocabulary.curation import curated
from reco_ray.vocabulary_sets import curate

PETS = make_vocabulary({"concepts": [{"name": "cat"}, {"name": "sofa", "synonyms": ["couch"]}]}, "pets")
FIRST, SECOND = "1" * 64, "2" * 64


def written(folder: Path, text: str) -> str:
    file = folder / "curation.yaml"
    file.write_text(text)
    return str(file)


def test_a_file_adds_images_and_keeps_the_words(tmp_path: Path) -> None:
    photograph(21).save(tmp_path / "mine.jpg")
    text = f"""
concepts:
  cat:
    rejected: [lion.jpg, s3://bucket/7.jpg, {FIRST}]
    pinned:
      - {{image: no, point: [3, 4.5]}}
    examples:
      - {{image: mine.jpg, box: [10, 20, 50, 60]}}
"""
    cat, sofa = curated(PETS, written(tmp_path, text)).concepts
    assert [each.image for each in cat.rejected] == [f"{tmp_path}/lion.jpg", "s3://bucket/7.jpg", FIRST]
    assert cat.pinned[0].image == f"{tmp_path}/no"
    assert cat.pinned[0].points == ((3, 4.5),)
    assert cat.examples[0].boxes == ((10, 20, 50, 60),)
    assert cat.words == ("cat",)
    assert sofa == PETS.concepts[1]
    assert curated(PETS, str(tmp_path / "curation.yaml")).without_chosen() == PETS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected 'concepts:"),
        ("concepts: [cat]", "expected 'concepts:"),
        ("concepts:\n  cat: {rejected: [", "not valid YAML"),
        ("concepts:\n  dog: {rejected: [a.jpg]}", r"line 2: concepts.dog: there is no concept 'dog': .*cat, sofa"),
        ("concepts:\n  tree: {rejected: [a.jpg]}", r"line 2: concepts.tree: 'tree' is a context concept"),
        ("concepts:\n  cat: {reject: [a.jpg]}", r"line 2: concepts.cat.reject: reject: there is no such field"),
        ("concepts:\n  cat:\n    pinned: a.jpg", r"line 3: concepts.cat.pinned: .*tuple"),
        ("concepts:\n  cat:\n    pinned:\n      - {box: [1, 2, 3, 4]}", r"line 4: .*pinned.0.*: Field required"),
        (
            "concepts:\n  cat:\n    examples:\n    - image: a.jpg\n      box: [5, 2, 3, 4]",
            r"line 5: concepts.cat.examples.0.boxes: \[5, 2, 3, 4\] is no box",
        ),
        ("concepts:\n  cat:\n    pinned:\n    - {image: a, box: [1, 2, x, 4]}", r"line 4: .*boxes.*number"),
        ("concepts:\n  cat:\n    pinned:\n    - {image: a, box: [1, 2, nan, 4]}", r"line 4: .*boxes.*finite"),
        ("concepts:\n  cat:\n    pinned:\n    - {image: a, point: [-1, 2]}", r"line 4: .*points.*greater"),
        ("concepts:\n  cat: {rejected: [a, a]}", r"line 2: concepts.cat: rejected: a is given twice"),
        ("concepts:\n  cat: {rejected: [a], pinned: [a]}", r"line 2: concepts.cat: a is both rejected"),
        ("concepts:\n  cat: {rejected: [{image: a, box: [1, 2, 3, 4]}]}", "rejected has no box"),
        ("concepts:\n  cat: {pinned: [a]}\n  cat: {pinned: [b]}", "line 3: cat: given twice"),
        ("concepts:\n  cat: {only_chosen: true}", "line 2: concepts.cat: only_chosen: needs a pinned"),
        ("concepts:\n  cat: [a.jpg]", r"line 2: concepts.cat: Input should be"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(RecoError, match=says) as raised:
        curated(PETS, file)
    assert str(raised.value).startswith(file)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nothing.yaml: the curation cannot be read: No such file"):
        curated(PETS, str(tmp_path / "nothing.yaml"))
    (tmp_path / "latin.yaml").write_bytes("concepts: {Bär: }".encode("latin-1"))
    with pytest.raises(RecoError, match="not UTF-8"):
        curated(PETS, str(tmp_path / "latin.yaml"))


def test_a_concept_of_examples_alone_has_no_words(tmp_path: Path) -> None:
    photograph(3).save(tmp_path / "logo.png")
    file = tmp_path / "v.yaml"
    file.write_text("concepts: [cat, {name: our logo, examples: [logo.png]}]")
    _, logo = load_vocabulary(str(file)).concepts
    assert logo.words == ()
    assert logo.examples[0].image == f"{tmp_path}/logo.png"
    with pytest.raises(RecoError, match=r"our logo.*has no words, so nothing is retrieved"):
        curated(load_vocabulary(str(file)), written(tmp_path, "concepts: {our logo: {rejected: [a]}}"))
    with pytest.raises(RecoError, match=r"'ivy'.*uses the reference of 'tree'"):
        make_vocabulary({"concepts": [{"name": "ivy", "alias": "tree", "pinned": ["a"]}]}, "x")


def test_a_curation_belongs_to_one_vocabulary(tmp_path: Path) -> None:
    file = written(tmp_path, "concepts: {cat: {rejected: [a.jpg]}}")
    both = {"pets": PETS, "more": PETS}
    assert curate({"pets": PETS}, [file])["pets"].chosen
    found = curate(both, [f"more={file}"])
    assert (found["pets"].chosen, found["more"].chosen) == (False, True)
    with pytest.raises(UsageError, match="NAME=FILE, of pets, more"):
        curate(both, [file])
    with pytest.raises(UsageError, match="has one already"):
        curate(both, [f"more={file}", f"more={file}"])


def test_examples_are_opened_before_any_work(tmp_path: Path) -> None:
    settings = load_settings("mini")
    turned = photograph(21, 96).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    width, height = turned.height, turned.width

    def opened(name: str, **marks: object) -> ChosenImage:
        example = {"image": str(tmp_path / name), **marks}
        found = make_vocabulary({"concepts": [{"name": "logo", "examples": [example]}]}, "v")
        return open_examples(found, settings).concepts[0].examples[0]

    found = opened("turned.jpg", box=[0, 0, width, height])
    assert (found.width, found.height) == (width, height)
    assert found.image_id is not None
    with pytest.raises(
        RecoError, match=rf"'logo': examples: .*turned.jpg: box .* outside the image of {width} x"
    ):
        opened("turned.jpg", box=[0, 0, width + 1, height])
    with pytest.raises(RecoError, match=r"point .* outside the image"):
        opened("turned.jpg", point=[width, 0])
    with pytest.raises(MissingError, match=r"'logo': examples: .*gone.jpg: cannot be read: No such file"):
        opened("gone.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(RecoError, match="not an image that can be decoded"):
        opened("text.jpg")


# --- content ids --------------------------------------------------------------------------------------------


def ids(*concepts: Concept) -> tuple[str, ...]:
    vocabulary = Vocabulary(concepts=concepts, context=("sky",))
    return plan_references(vocabulary, load_settings("mini"), "x", "now", "r", "d").ids


def chosen(image_id: str, image: str = "a.jpg", **marks: object) -> ChosenImage:
    return ChosenImage(image=image, image_id=image_id, **marks)  # type: ignore[arg-type]


def test_content_ids_are_of_images_and_regions_and_those_of_other_concepts_stay() -> None:
    dog, cat = ids(Concept(name="dog"), Concept(name="cat"))
    curated_ids = {
        ids(Concept(name="dog"), Concept(name="cat", **fields))  # type: ignore[arg-type]
        for fields in (
            {"rejected": (chosen(FIRST),)},
            {"rejected": (chosen(SECOND),)},
            {"pinned": (chosen(FIRST),)},
            {"pinned": (chosen(FIRST),), "only_chosen": True},
            {"pinned": (chosen(FIRST, boxes=((1, 2, 3, 4),)),)},
            {"pinned": (chosen(FIRST, points=((1, 2),)),)},
            {"examples": (chosen(FIRST),)},
            {"examples": (chosen(FIRST),), "synonyms": ("cat",)},
        )
    }
    assert {each[0] for each in curated_ids} == {dog}
    assert len({each[1] for each in curated_ids} - {cat}) == 8
    moved = Concept(name="cat", pinned=(chosen(FIRST, image="elsewhere/b.jpg"),))
    assert ids(moved) == ids(Concept(name="cat", pinned=(chosen(FIRST),)))


def test_vocabularies_without_chosen_images_are_written_as_before() -> None:
    assert PETS.model_dump()["concepts"][0] == {"name": "cat", "synonyms": (), "alias": None}
    again = Vocabulary.model_validate_json(PETS.model_dump_json())
    assert again == PETS
    full = PETS.with_concepts([Concept(name="cat", examples=(chosen(FIRST, boxes=((1, 2, 3, 4),)),))])
    assert Vocabulary.model_validate_json(full.model_dump_json()) == full


# --- regions ------------------------------------------------------------------------------------------------


def test_boxes_become_parts_of_what_the_models_see() -> None:
    wide = ChosenImage(image="a", boxes=((20, 0, 60, 50),), points=((199, 99),)).opened(FIRST, 200, 100)
    assert crop_regions(wide, "whole") == [[0.1, 0, 0.3, 0.5], [0.995, 0.99, 0.995, 0.99]]
    with pytest.raises(ValueError, match=r"\[199, 99, 199, 99\] is outside the centre"):
        crop_regions(wide, "crop")
    middle = ChosenImage(image="a", boxes=((20, 0, 100, 50),)).opened(FIRST, 200, 100)
    assert crop_regions(middle, "crop") == [[0, 0, 0.5, 0.5]]
    assert crop_regions(ChosenImage(image="a").opened(FIRST, 200, 100), "whole") is None


def test_every_box_allows_a_location() -> None:
    assert allowed_locations([None, None], (2, 2), torch.device("cpu")) is None
    regions = [
        None,
        [[0, 0, 0.5, 1]],
        [[0.9, 0.9, 0.9, 0.9]],
        [[0, 0, 0.1, 0.1], [0.5, 0.5, 1, 1]],
        [[1, 1, 1, 1]],
    ]
    found = allowed_locations(regions, (2, 2), torch.device("cpu"))
    assert found is not None
    assert found.long().tolist() == [
        [[1, 1], [1, 1]], [[1, 0], [1, 0]], [[0, 0], [0, 1]], [[1, 0], [0, 1]], [[0, 0], [0, 1]]
    ]  # fmt: skip


def test_seeds_lie_where_they_may() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(3, 5, 4, 4, generator=random)
    features[:, :, 0, 0] = torch.ones(5) * 3  # recurs in all
    assert cosegment(features).seed_locations.tolist() == [[0, 0]] * 3
    allowed = torch.ones(3, 4, 4, dtype=torch.bool)
    allowed[1] = False
    allowed[1, 2:, 2:] = True
    found = cosegment(features, allowed=allowed)
    assert found.seed_locations[1].min() >= 2
    assert found.support[1, :2].count_nonzero() == 0
    everywhere = cosegment(features, allowed=torch.ones_like(allowed))
    assert torch.equal(everywhere.support, cosegment(features).support)
    with pytest.raises(ValueError, match="a location in every image"):
        cosegment(features, allowed=torch.zeros_like(allowed))
    with pytest.raises(ValueError, match="must be bool"):
        cosegment(features, allowed=allowed.float())


def test_without_words_the_seed_of_one_example_is_typical_of_its_box() -> None:
    features = torch.zeros(1, 3, 4, 4)
    features[:, 0] = 1  # lawn
    features[:, :, 1:3, 1:3] = torch.tensor([0.0, 1, 0]).view(1, 3, 1, 1)  # the thing
    features[0, :, 1, 1] = torch.tensor([0.0, 0, 1])  # an odd corner of it
    encoded = DenseFeatures(features, torch.zeros(1, 2, 4, 4))
    settings = load_settings("mini").references
    found = reference_from_features(encoded, torch.zeros(2), None, settings, [[[0.25, 0.25, 0.75, 0.75]]])
    assert found.seed_locations.tolist() == [[1, 2]]
    assert found.reference.tolist() == [0, 1, 0]


# --- scores without words -----------------------------------------------------------------------------------


def features(images: int, classifier: bool) -> DenseFeatures:
    random = torch.Generator().manual_seed(1)
    maps = torch.randn(images, 8, 4, 4, generator=random), torch.randn(images, 6, 4, 4, generator=random)
    if not classifier:
        return DenseFeatures(*maps)
    classes = F.normalize(torch.randn(5, 6, generator=random), dim=1)
    return DenseFeatures(*maps, torch.randn(images, 5, 4, 4, generator=random), classes)


def targets(words: int, background: bool = False) -> Targets:
    random = torch.Generator().manual_seed(2)
    texts = F.normalize(torch.randn(4, 6, generator=random), dim=1)
    texts[words:] = 0
    references = F.normalize(torch.randn(4, 8, generator=random), dim=1)
    return Targets(references, texts, torch.arange(4), background)


@pytest.mark.parametrize("classifier", [True, False])
@pytest.mark.parametrize("words", [3, 1, 0])
def test_a_concept_without_words_has_reference_evidence_only(classifier: bool, words: int) -> None:
    sample, found = features(40, classifier), targets(words)
    calibration = calibrate(sample, found)
    maps = evidence_maps(sample, found)
    logits = calibrated_logits(maps, calibration)
    spread = logits.transpose(0, 1).flatten(1).std(1)
    for number in range(words, 4):
        standard = maps[0][:, number] - maps[0][:, number].mean()
        assert torch.allclose(logits[:, number], 1.5 * standard / standard.std(correction=0), atol=1e-3)
    if words:
        # The others are what they would be without it, and spread alike.
        alone = found.select(torch.arange(words))
        expected = calibrated_logits(evidence_maps(sample, alone), calibrate(sample, alone))
        close = torch.isclose(logits[:, :words], expected, atol=0.2)
        assert close.float().mean() > 0.9
        assert 0.5 < float(spread[words:].mean() / spread[:words].mean()) < 2
    same = calibrate(sample, found, "references").deviations[0]
    assert torch.allclose(same, maps[0].transpose(0, 1).flatten(1).std(1, correction=0))


def test_products_take_the_mean_attention_of_the_others() -> None:
    encoded, found = features(1, classifier=False), targets(3)
    scores = concept_scores(
        encoded.visual,
        found.references,
        language_features=encoded.language,
        text_embeddings=found.text_embeddings,
    )
    similarity = torch.sigmoid(
        torch.einsum("bchw,mc->bmhw", F.normalize(encoded.visual, dim=1), found.references)
    )
    attention = scores / similarity
    assert torch.allclose(attention[:, 3], attention[:, :3].mean(1), atol=1e-5)
