"""Prompts as CSV (F13), captions as JSON lines (F16), concepts as CSV: read as what they are, or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unteach.data import tables
from unteach.data.captioned import captioned
from unteach.data.concepts import ConceptSet
from unteach.errors import ConfigError, DataError, UnteachError


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ------------------------------------------------------------------------------------------------- prompts (F13)


@pytest.mark.parametrize(
    ("name", "content", "want", "unused"),
    [
        (
            "reported.csv",
            'case_number,prompt,evaluation_seed\n0,"A cat, painted in oil",310\n1,a dog,8\n',
            ["A cat, painted in oil", "a dog"],
            ["case_number", "evaluation_seed"],
        ),
        (
            "pandas.csv",
            ',prompt,evaluation_guidance\r\n0,"say ""hi""",7.5\r\n',
            ['say "hi"'],
            ["(without a name)", "evaluation_guidance"],
        ),
        ("mark.csv", "\ufeffPrompt,seed\na cat,1\n\n,\na cat,2\n", ["a cat"], ["seed"]),
        ("european.csv", "nr;prompt\n1;a cat, a dog\n", ["a cat, a dog"], ["nr"]),
        ("tabs.tsv", "nr\tprompt\n1\ta cat, a dog\n", ["a cat, a dog"], ["nr"]),
        ("one.csv", "prompt\na cat\na\u2028dog\n", ["a cat", "a\u2028dog"], []),
        ("lines.csv", 'prompt,n\n"a cat\non a mat",1\n', ["a cat on a mat"], ["n"]),
        ("plain.txt", "\ufeffa cat, a dog\r\n\n  a dog\na\u2028b\na dog\n", ["a cat, a dog", "a dog", "a\u2028b"], []),
        ("plain", '"a cat", he said\n', ['"a cat", he said'], []),
    ],
)
def test_f13_prompts_are_read_from_text_and_from_the_prompt_column(
    name: str, content: str, want: list[str], unused: list[str], tmp_path: Path
) -> None:
    assert tables.prompts(written(tmp_path / name, content)) == (want, unused)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "case,text\n1,a cat\n", r"no column 'prompt'; found: columns 'case', 'text'"),
        ("a.csv", '"A cat, painted",310\n', r"no column 'prompt'; found: columns 'A cat, painted', '310'"),
        ("a.csv", "prompt,n,Prompt\na,1,b\n", "several columns 'prompt'"),
        ("a.csv", "prompt,seed\na cat, painted,3\n", r"line 2 has more cells than the header \(3, 2\)"),
        ("a.csv", 'prompt\n"a cat\na dog\n', "not a whole CSV file; found: line 3"),
        ("a.csv", f"prompt\n{'a' * 140_000}\n", "not a whole CSV file; found: line 2: field larger"),
        ("a.csv", "seed,prompt\n1,a\n2,\n3,b\n4\n", "line 3 has no prompt; line 5 has no prompt"),
        ("a.csv", "prompt\n", "holds no prompts"),
        ("a.csv", "", "no column 'prompt'; found: columns none"),
        ("a.csv", b"prompt\n\xe9\n", "not UTF-8 text"),
        ("a.txt", "\n \n", "holds no prompts"),
        ("a.txt", "a cat".encode("utf-16"), "not UTF-8 text.*save it as UTF-8"),
        ("a.jsonl", '{"prompt": "a"}\n', "not read from .jsonl files"),
    ],
)
def test_f13_what_is_no_list_of_prompts_is_refused(name: str, content: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        tables.prompts(written(tmp_path / name, content))


def test_a_prompts_file_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path / "none.txt", tmp_path, Path("a\0b")):
        with pytest.raises(DataError, match="cannot be read"):
            tables.prompts(path)


# ------------------------------------------------------------------------------------------------ captions (F16)


def folder(root: Path, text: str | bytes) -> Path:
    written(root / "metadata.jsonl", text)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4), "red").save(root / name)
    return root


A, B = {"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": "two"}


def lines(*records: object) -> str:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("\ufeff" + lines(A, B).replace("\n", "\r\n"), ("one", "two")),
        (lines({**A, "text": "one\u2028line"}, B), ("one\u2028line", "two")),
        (
            lines({**A, "text": "one\x85line"}, {**B, "text": "a\x0cb\x1cc\u2029d"}),
            ("one\x85line", "a\x0cb\x1cc\u2029d"),
        ),
        (lines({"file_name": "a.png", "caption": "one"}), ("one",)),
        (lines({"prompt": "one", "file_name": "a.png", "url": "x"}), ("one",)),
    ],
)
def test_f16_captions_as_tools_and_editors_write_them(text: str, want: tuple[str, ...], tmp_path: Path) -> None:
    assert captioned(folder(tmp_path, text), (4, 4)).captions == want


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            lines({"file_name": "a.png", "title": "x"}),
            r"no 'text', 'caption' or 'prompt'.*columns: 'file_name', 'title'",
        ),
        (lines({**A, "caption": "x"}), r"'text' and 'caption': one of them.*'file_name', 'text', 'caption'"),
        (lines({"image": "a.png", "text": "x"}), r"no 'file_name' \(columns: 'image', 'text'\)"),
        (lines({**A, "text": None}), "file_name and text must be text"),
        (json.dumps([A, B]), "line 1: list where"),
        ("[" * 100_000, "line 1: too many brackets"),
        ('{"file_name": "a.png", "text": ' + "9" * 5000 + "}", "line 1: .*limit"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "line 1: .*half a character"),
        ('{"file_name": "a\\u0000.png", "text": "a"}', "line 1: "),
        (lines(A, B).encode("utf-16"), "not UTF-8 text.*save it as UTF-8"),
    ],
)
def test_f16_what_cannot_be_used_says_why(text: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        captioned(folder(tmp_path, text), (4, 4))


# ----------------------------------------------------------------------------------------------------- concepts


def test_concepts_with_a_byte_order_mark_and_separators_inside_cells(tmp_path: Path) -> None:
    text = '\ufefftarget,anchor,prompts\r\nbomb,apple,"a {}; a {}\u2028x; a {},\nred"\r\n'
    (concept,) = ConceptSet.load(written(tmp_path / "c.csv", text))
    assert concept.target == "bomb" and concept.prompts == ("a {}", "a {}\u2028x", "a {},\nred")
    (same,) = ConceptSet.load(written(tmp_path / "c.yaml", "\ufeff- {target: bomb, anchor: apple}\n"))
    assert same.target == "bomb"


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (f"target,anchor\nbomb,{'a' * 140_000}\n", DataError, "line 2: field larger"),
        ('target,anchor\nbomb,"apple\n', DataError, "not a whole CSV file"),
        (b"target,anchor\ncaf\xe9,apple\n", DataError, "not UTF-8 text"),
        ("target,anchor,anchor\na,b,c\n", ConfigError, "'anchor' is there twice"),
        ("target,anchor\na,b,c\n", ConfigError, "line 2 has more cells"),
    ],
)
def test_concepts_that_are_no_whole_table(
    content: str | bytes, kind: type[UnteachError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=said):
        ConceptSet.load(written(tmp_path / "c.csv", content))


def test_l4_damaged_text_files_are_read_or_refused(tmp_path: Path) -> None:
    """Six hundred mutations of a table, of captions and of prompts: a result or one of our errors."""
    random = np.random.default_rng(0)
    folder(tmp_path, "")
    whole = {
        "c.csv": b'target,anchor,prompts\nbomb,"apple",a {};the {}\n"gun",pen,\n',
        "p.csv": b'n,prompt,seed\n1,"a cat, a dog",3\n2,"say ""hi""",4\n',
        "metadata.jsonl": lines(A, B).encode(),
    }
    readers = {
        "c.csv": ConceptSet.load,
        "p.csv": tables.prompts,
        "metadata.jsonl": lambda path: captioned(path.parent, (4, 4)),
    }
    refused = 0
    for i in range(600):
        name = list(whole)[i % 3]
        data = bytearray(whole[name])
        for place in random.integers(0, len(data), 1 + i % 4):
            data[place] = random.choice(list(b'",;\n\r\0{}[]\\\xff\xe2a'))
        try:
            readers[name](written(tmp_path / name, bytes(data)))
        except UnteachError as error:
            refused += 1
            assert len(str(error)) < 2000
    assert 100 < refused < 600
