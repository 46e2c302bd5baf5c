"""Vocabularies from the command line and from files."""

# ruff: noqa: RUF001 (full-width commas and colons are among what is read)

import json
import re
import unicodedata

import pytest
from documents import DOCS, blocks

from reco_ray.errors import RecoError
from reco_ray.vocabulary import (
    CONTEXT_CONCEPTS,
    MAX_NAME_LENGTH,
    Concept,
    Vocabulary,
    load_vocabulary,
    parse_concepts,
    slug,
    summarize,
    unreadable_words,
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
        ("v.yaml", "nc: 2\npath: data\n", "expected a list of concepts"),
        ("v.yaml", "references: {exemplars: 8}\n", "expected a list of concepts"),
        ("v.yaml", "name: animals\n", "expected a list of concepts"),
        ("v.yaml", "concepts: [cat]\nconext: [sky]\n", "conext: there is no such field"),
        ("v.txt", "cat, dog: hound\n", "a comma before the colon"),
        ("v.json", '[{"name": null}]', "concepts.0.name"),
        ("v.csv", "a,b,c\nd,e,f\n", "no header names the column"),
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


ANIMALS = ["cat", "dog", "sofa bed"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("v.txt", "cat\ndog\nsofa bed\n"),
        ("v.TXT", "cat\r\n\r\ndog\r\nsofa bed"),
        ("v", "cat\ndog\nsofa bed"),
        ("coco.names", "cat\ndog\nsofa bed\n"),
        ("v.txt", "cat, dog, sofa bed,\n"),
        ("v.txt", "cat; dog; sofa bed"),
        ("v.txt", "cat\tdog\tsofa bed"),
        ("v.txt", "cat，dog、sofa bed"),
        ("v.txt", "cat, dog\nsofa bed\n"),
        ("v.txt", "- cat\n- dog\n- sofa bed\n"),
        ("v.txt", "* cat\n* dog\n* sofa bed\n"),
        ("v.md", "# Things\n\n- [ ] cat\n- [x] dog\n• sofa bed\n"),
        ("v.txt", "1. cat\n2. dog\n3. sofa bed\n"),
        ("v.txt", "1) cat\n2) dog\n3) sofa bed\n"),
        ("v.txt", "0: cat\n1: dog\n2: sofa bed\n"),
        ("v.txt", "0 cat\n1 dog\n2 sofa bed\n"),
        ("v.txt", "1\tcat\n2\tdog\n3\tsofa bed\n"),
        ("v.txt", "\"cat\"\n'dog'\n“sofa bed”\n"),
        ("v.txt", '"cat", "dog", "sofa bed"'),
        ("v.txt", "['cat', 'dog', 'sofa bed']"),
        ("v.txt", '["cat", "dog", "sofa bed"]'),
        ("v.txt", "id,name\n1,dog\n0,cat\n2,sofa bed\n"),
        ("v.csv", "name\ncat\ndog\nsofa bed\n"),
        ("v.csv", "cat,dog,sofa bed\n"),
        ("v.csv", "cat,\ndog,\nsofa bed,\n"),
        ("v.csv", 'ID;Label;Colour\n2;"sofa bed";red\n0;cat;blue\n1;dog;\n'),
        ("v.CSV", "class,label\n0,cat\n1,dog\n2,sofa bed\n"),
        ("v.csv", "0,cat\n1,dog\n2,sofa bed\n"),
        ("v.tsv", "name\tid\nsofa bed\t10\ncat\t2\ndog\t9\n"),
        ("v.YAML", "- cat\n- dog\n- sofa bed\n"),
        ("v.yaml", "name: things\nconcepts: [cat, dog, sofa bed]\n"),
        ("v.yaml", "concepts: cat, dog, sofa bed\n"),
        ("v.yaml", "cat, dog, sofa bed\n"),
        ("v.yaml", "cat:\ndog:\nsofa bed:\n"),
        ("data.yaml", "path: ../d\ntrain: images\nnc: 3\nnames: ['cat', 'dog', 'sofa bed']\n"),
        ("data.yaml", "nc: 3\nnames:\n  10: sofa bed\n  0: cat\n  2: dog\n"),
        ("v.json", '["cat", "dog", "sofa bed"]'),
        ("v.json", '{"0": "cat", "1": "dog", "10": "sofa bed"}'),
        ("v.json", '{"sofa bed": 10, "cat": 0, "dog": 2}'),
        ("config.json", '{"id2label": {"0": "cat", "1": "dog", "2": "sofa bed"}, "model_type": "vit"}'),
        (
            "instances.json",
            '{"images": [], "categories": [{"id": 2, "name": "dog", "supercategory": "animal"}, '
            '{"id": 1, "name": "cat", "isthing": 1}, {"id": 9, "name": "sofa bed", "isthing": 1}]}',
        ),
        (
            "cvat.json",
            json.dumps([{"name": n, "color": "#ff0000", "type": "any", "attributes": []} for n in ANIMALS]),
        ),
        ("labels.json", json.dumps({"labels": [{"value": n, "background": "red"} for n in ANIMALS]})),
    ],
)
def test_lists_are_read_in_the_forms_that_people_have(tmp_path, name, text):
    vocabulary = load_vocabulary(written(tmp_path, name, text))
    assert vocabulary.names == ANIMALS
    assert [concept.words for concept in vocabulary.concepts] == [(name,) for name in ANIMALS]


def test_the_files_of_the_documents_are_read_as_they_say(tmp_path):
    shown = {block.language: block.text for block in blocks(DOCS / "vocabularies.md")}
    lines = load_vocabulary(written(tmp_path, "v.txt", shown["text"]))
    assert lines.names == ["cat", "dog", "sofa", "lamp", "window", "plant"]
    assert lines.concepts[2].words == ("couch", "settee")
    street = load_vocabulary(written(tmp_path, "v.yaml", shown["yaml"]))
    assert (street.names, street.concepts[2].alias) == (["car", "sofa", "vegetation"], "tree")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_windows_encodings_are_read(tmp_path, encoding):
    file = tmp_path / "v.csv"
    file.write_bytes("name\r\nBär\r\n犬\r\n".encode(encoding))
    assert load_vocabulary(str(file)).names == ["Bär", "犬"]


def test_utf_16_without_its_mark_and_characters_of_no_width_are_read(tmp_path):
    file = tmp_path / "v.txt"
    for encoding in ("utf-16-le", "utf-16-be"):
        file.write_bytes("cat\r\n\u200bdog\r\n".encode(encoding))
        assert load_vocabulary(str(file)).names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("v.txt", "C# logo\nF#\n", ["C# logo", "F#"]),
        ("v.txt", "sky # above\n#grass\n", ["sky"]),
        ("v.txt", "driver's cab\n'tis\n", ["driver's cab", "'tis"]),
        ("v.txt", '"salt, pepper"\n', ["salt, pepper"]),
        ("v.txt", "3 wheeler\n4 wheeler\nbus\n", ["3 wheeler", "4 wheeler", "bus"]),
        ("v.txt", "1.5 litre bottle\nT-shirt\n-", ["1.5 litre bottle", "T-shirt", "-"]),
        ("v.txt", "7-Eleven", ["7-Eleven"]),
        (
            "v.yaml",
            "- no\n- 7\n- null\n- 2024-01-01\n- on\n- 1e3\n",
            ["no", "7", "null", "2024-01-01", "on", "1e3"],
        ),
        ("v.yaml", "names: {0: no, 1: yes}\n", ["no", "yes"]),
        ("v.json", "[7, 8.5]", ["7", "8.5"]),
        ("v.csv", '"salt, pepper",1\nbread,0\n', ["bread", "salt, pepper"]),
    ],
)
def test_what_looks_like_a_sign_but_is_none_stays(tmp_path, name, text, names):
    assert load_vocabulary(written(tmp_path, name, text)).names == names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("v.txt", 'sofa: couch, "settee"\n'),
        ("v.txt", "- sofa： couch、settee\n"),
        ("v.yaml", "sofa: couch, settee\n"),
        ("v.yaml", "- sofa: couch, settee\n"),
        ("v.yaml", "- {name: sofa, synonyms: 'couch, settee', alias: }\n"),
        ("v.json", '{"sofa": "couch, settee"}'),
        (
            "v.json",
            '{"categories": [{"id": 1, "name": "sofa", "synonyms": ["couch", "settee"], "def": "to sit on"}]}',
        ),
        ("v.csv", "name,synonyms\nsofa,couch|settee\n"),
    ],
)
def test_synonyms_are_read_wherever_they_stand(tmp_path, name, text):
    (concept,) = load_vocabulary(written(tmp_path, name, text)).concepts
    assert concept == Concept(name="sofa", synonyms=("couch", "settee"))


def test_yamls_own_fields_keep_their_types(tmp_path):
    uri = written(tmp_path, "v.yaml", "concepts: [cat]\ncontext: []\nbackground: true\nversion: 2\n")
    vocabulary = load_vocabulary(uri)
    assert (vocabulary.context, vocabulary.background) == ((), True)


def test_quotes_keep_a_comma_inside_a_name_of_a_command_line():
    assert parse_concepts("\"salt, pepper\", 'dog'; Star Wars: X").names == [
        "salt, pepper",
        "dog",
        "Star Wars: X",
    ]


def test_a_file_that_is_given_as_concepts_is_noticed():
    with pytest.raises(RecoError, match=r"words\.TXT looks like a file: give it with --vocabulary"):
        parse_concepts("words.TXT")


def test_what_was_read_is_said_in_a_line():
    assert summarize(parse_concepts("dog")) == "1 concept: dog"
    many = Vocabulary(
        concepts=(Concept(name="sofa", synonyms=("couch",)), *(Concept(name=f"c{n}") for n in range(19)))
    )
    assert summarize(many) == "20 concepts: sofa (couch), c0, c1, c2, c3, c4, c5, c6, c7, c8, ..."


def test_words_that_say_nothing_to_a_model_get_a_warning():
    assert unreadable_words(parse_concepts("cat, 犬, 7")) == []
    (warning,) = unreadable_words(parse_concepts("cat, !!!"))
    assert warning.startswith("'!!!' has neither a letter nor a digit")


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
    assert len(slug(14, "㎯" * 100)) == 104  # each is five letters in ASCII
