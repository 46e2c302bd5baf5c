"""Vocabularies from the command line and from files."""

import json
import re
import unicodedata

import pytest

from reco_ray.errors import RecoError
from reco_ray.vocabulary import (
    CONTEXT_CONCEPTS,
    MAX_NAME_LENGTH,
    Concept,
    Vocabulary,
    load_vocabulary,
    parse_concepts,
    slug,
)


def written(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_concepts_of_a_command_line_keep_their_order_and_lose_their_blanks():
    vocabulary = parse_concepts("  dog ,cat,,  traffic   light, ")
    assert vocabulary.names == ["dog", "cat", "traffic light"]
    assert vocabulary.context == CONTEXT_CONCEPTS
    assert [concept.words for concept in vocabulary.concepts] == [("dog",), ("cat",), ("traffic light",)]


@pytest.mark.parametrize("text", ["", "  ", ",", " , ,"])
def test_an_empty_list_is_refused(text):
    with pytest.raises(RecoError, match=r"--concepts: .*the concept list is empty"):
        parse_concepts(text)


@pytest.mark.parametrize(
    "text",
    ["cat,dog,cat", "cat,CAT", "straße,STRASSE", "caf\u00e9,cafe\u0301", "traffic light,traffic  light"],
)
def test_duplicates_are_refused_by_name(text):
    with pytest.raises(RecoError, match=r"--concepts: concept '.+' is named twice"):
        parse_concepts(text)


def test_over_long_names_are_refused():
    assert parse_concepts("a" * MAX_NAME_LENGTH).names == ["a" * MAX_NAME_LENGTH]
    with pytest.raises(RecoError, match=r"concepts\.0\.name: .*at most 100 characters"):
        parse_concepts("a" * (MAX_NAME_LENGTH + 1))


def test_text_files_have_synonyms_and_comments(tmp_path):
    uri = written(tmp_path, "v.txt", "# animals\ncat: cat, kitten # both\n\n собака : dog\ntraffic light\n")
    vocabulary = load_vocabulary(uri)
    assert vocabulary.names == ["cat", "собака", "traffic light"]
    assert [c.words for c in vocabulary.concepts] == [("cat", "kitten"), ("dog",), ("traffic light",)]


def test_windows_text_files_are_read(tmp_path):
    file = tmp_path / "v.txt"
    file.write_bytes("\ufeffcat\r\ndog\r\n".encode())
    assert load_vocabulary(str(file)).names == ["cat", "dog"]


FIELDS = {
    "concepts": ["dog", {"name": "vegetation", "synonyms": ["tree", "bush"], "alias": "tree"}],
    "context": ["tree", "sky"],
}


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_yaml_and_json_files_have_all_fields(tmp_path, indent):
    uri = written(tmp_path, "v.json", json.dumps(FIELDS, indent=indent))
    vocabulary = load_vocabulary(uri)
    assert vocabulary == load_vocabulary(written(tmp_path, "v.yaml", json.dumps(FIELDS)))
    assert vocabulary.names == ["dog", "vegetation"]
    assert vocabulary.concepts[1].words == ("tree", "bush")
    assert vocabulary.context == ("tree", "sky")


def test_yaml_may_be_a_bare_list(tmp_path):
    assert load_vocabulary(written(tmp_path, "v.yaml", "- dog\n- cat\n")).names == ["dog", "cat"]


def test_duplicates_in_files_are_found_across_spellings(tmp_path):
    composed, decomposed = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")
    with pytest.raises(RecoError, match="is named twice"):
        load_vocabulary(written(tmp_path, "v.yaml", f"- {composed}\n- {decomposed}\n"))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("v.txt", "", "the concept list is empty"),
        ("v.txt", "# only a comment\n", "the concept list is empty"),
        ("v.txt", ": cat\n", "concepts.0.name"),
        ("v.yaml", "", "expected a list of concepts"),
        ("v.yaml", "concepts: []\n", "the concept list is empty"),
        ("v.yaml", "concepts: 5\n", "concepts: expected a list"),
        ("v.yaml", "concepts: cat, dog\n", "concepts: expected a list"),
        ("v.yaml", "- '  '\n", "concepts.0.name"),
        ("v.yaml", "- {name: cat, colour: red}\n", "concepts.0.colour"),
        ("v.yaml", "- {name: cat, alias: moon}\n", "alias 'moon' is no context concept"),
        ("v.yaml", "concept: [cat]\n", "concept"),
        ("v.yaml", "- [", "not valid YAML"),
        ("v.json", '{"concepts": [', "not valid JSON"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, says):
    uri = written(tmp_path, name, text)
    with pytest.raises(RecoError, match=re.escape(says)) as caught:
        load_vocabulary(uri)
    assert str(caught.value).startswith(uri)
    assert len(str(caught.value).splitlines()) == 1


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(RecoError, match=r"nothing\.txt: the vocabulary cannot be read: No such file"):
        load_vocabulary(str(tmp_path / "nothing.txt"))
    with pytest.raises(RecoError, match="the vocabulary cannot be read"):
        load_vocabulary(str(tmp_path))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Bär".encode("latin-1"))
    with pytest.raises(RecoError, match=r"latin\.txt: not UTF-8 text"):
        load_vocabulary(str(latin))


def test_concepts_share_the_reference_of_the_context_concept_they_are_or_name():
    vocabulary = Vocabulary(
        concepts=(Concept(name="sky"), Concept(name="vegetation", alias="tree"), Concept(name="dog"))
    )
    assert [vocabulary.context_of(concept) for concept in vocabulary.concepts] == ["sky", "tree", None]


def test_slugs_are_ascii_file_names_and_distinct():
    assert slug(0, "Traffic light") == "000-traffic-light"
    assert slug(7, "Café/../../etc") == "007-cafe-etc"
    assert slug(12, "собака") == "012"
    assert slug(13, "犬") == "013"
