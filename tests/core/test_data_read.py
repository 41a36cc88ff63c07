"""`read`: lists, datasets, Parquet, names; what cannot be used is refused by row before anything else happens."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.errors import UsageError

ROW = {"instruction": "Q", "output": "A"}


def read(data: Any, **options: Any) -> Any:
    from qlora_core.data.read import read

    return read(data, **options)


def answers(rows: Any) -> list[str]:
    return [row.answer for row in rows]


def written(folder: Path, *records: Any, name: str = "d.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def picture(colour: str, folder: Path | None = None, name: str = "a.png") -> Any:
    from PIL import Image

    image = Image.effect_noise((64, 48), 80).convert("RGB") if colour == "noise" else Image.new("RGB", (8, 6), colour)
    if folder is not None:
        image.save(folder / name)
    return image


def test_a_list_of_dictionaries_is_read(tmp_path: Path) -> None:
    rows = read([ROW, {**ROW, "output": "B"}])
    assert answers(rows) == ["A", "B"] and rows[1].where == "the list row 2"


def test_a_path_several_paths_and_a_folder_are_read(tmp_path: Path) -> None:
    one, two = written(tmp_path, ROW), written(tmp_path, {**ROW, "output": "B"}, name="e.jsonl")
    assert answers(read(one)) == ["A"]
    assert answers(read(Path(one))) == ["A"]
    assert answers(read([one, two])) == answers(read(tmp_path)) == ["A", "B"]


def test_a_parquet_file_is_read_and_its_nulls_are_no_fields(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "d.parquet"
    data = datasets.Dataset.from_list([{**ROW, "input": None}, {"instruction": "Q", "input": "C", "output": None}])
    data.to_parquet(str(path))
    from qlora_core.data.read import look

    rows = look(path)
    assert answers(rows) == ["A"]
    assert [(f.kind, f.row, f.field) for f in rows.faults] == [("malformed", 2, "output")]


def test_a_dataset_and_one_split_of_several_are_read(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list([ROW])
    assert answers(read(data)) == ["A"]
    both = datasets.DatasetDict(train=data, test=datasets.Dataset.from_list([{**ROW, "output": "T"}]))
    assert answers(read(both, split="test")) == ["T"]
    with pytest.raises(UsageError, match="no split 'dev'; it has train, test"):
        read(both, split="dev")
    both.save_to_disk(str(tmp_path / "saved"))
    assert answers(read(tmp_path / "saved", split="test")) == ["T"]


def test_images_of_a_dataset_stay_where_they_are_until_they_are_opened() -> None:
    import datasets

    from qlora_core.data.images import Stored, open_source

    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    )
    records = [{"image": picture(colour), "question": "Q", "answer": colour} for colour in ("red", "blue")]
    rows = read(datasets.Dataset.from_list(records, features=features))
    sources = [row.images[0].source for row in pickle.loads(pickle.dumps(rows)).rows]
    assert all(isinstance(source, Stored) for source in sources)
    assert [open_source(source).convert("RGB").getpixel((0, 0)) for source in sources] == [(255, 0, 0), (0, 0, 255)]


def test_a_list_of_images_in_a_dataset_takes_its_places() -> None:
    import datasets

    from qlora_core.data.images import open_source

    turns = [{"role": "user", "content": "<image> or <image>?"}, {"role": "assistant", "content": "A"}]
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        }
    )
    data = datasets.Dataset.from_list(
        [{"images": [picture("red"), picture("blue")], "messages": turns}], features=features
    )
    (row,) = read(data)
    assert [open_source(i.source).convert("RGB").getpixel((0, 0)) for i in row.images] == [(255, 0, 0), (0, 0, 255)]


def test_pictures_in_a_list_of_dictionaries_are_taken_as_they_are() -> None:
    image = picture("red")
    (row,) = read([{"image": image, "question": "Q", "answer": "A"}])
    assert row.images[0].source is image


def test_bad_rows_are_refused_with_file_row_field_and_what_to_do(tmp_path: Path) -> None:
    from qlora_core.data.read import BadData

    path = written(tmp_path, ROW, {**ROW, "output": 3}, {"instruction": "Q"}, ROW)
    with pytest.raises(BadData) as caught:
        read(path)
    text = str(caught.value)
    assert "2 of 4 rows cannot be used" in text
    assert "d.jsonl row 2 (output): it is a number, and text is wanted; write it as a string" in text
    assert "d.jsonl row 3 (output): it is missing" in text
    assert answers(caught.value.rows) == ["A", "A"]


def test_of_many_bad_rows_the_first_ten_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="and 5 more") as caught:
        read([*[{"instruction": "Q"}] * 15, ROW], format="alpaca")
    assert str(caught.value).count("the list row") == 10


@pytest.mark.parametrize(
    ("data", "options", "what"),
    [
        ([], {}, "no row"),
        ([{"chosen": "A", "rejected": "B"}], {}, "DPOTrainer"),
        ([{"a": 1}], {}, "its keys are a, which is no format"),
        (["not/a/file.jsonl"], {}, "no such file"),
        ("./absent", {}, "no such file"),
        ("train.jsonll/x/y", {}, "no such file"),
        (3, {}, "data is int"),
        ({"a": 1}, {}, "data is dict"),
        ([ROW], {"limit": 0}, "limit=0"),
        ([ROW], {"format": "alpacca"}, "did you mean alpaca"),
        ([ROW], {"images": "./absent"}, "no such folder"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_way_out(data: Any, options: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        read(data, **options)


def test_a_mistyped_path_gets_the_nearest_name_and_never_other_data(tmp_path: Path) -> None:
    written(tmp_path, ROW, name="train.jsonl")
    with pytest.raises(UsageError, match=r"did you mean .*train\.jsonl"):
        read(tmp_path / "trian.jsonl")


def test_a_dataset_that_the_hub_does_not_give_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="no such file here, and the Hub gives no dataset of this name"):
        read("nobody/nothing-of-this-name")


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda path: None, ""),
        (lambda path: path.unlink(), "image missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "image broken"),
        (lambda path: path.write_text("hello"), "image broken"),
    ],
    ids=["whole", "missing", "cut off", "text"],
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_an_image_that_is_missing_or_damaged_is_found_without_decoding(
    tmp_path: Path, name: str, spoil: Any, kind: str
) -> None:
    from qlora_core.data.images import look_at_images

    picture("noise", tmp_path, name)
    spoil(tmp_path / name)
    rows = read(written(tmp_path, {"image": name, "question": "Q", "answer": "A"}))
    assert [(f.kind, f.row) for f in look_at_images(rows)] == ([(kind, 1)] if kind else [])


def test_a_huge_image_is_found_by_its_header(tmp_path: Path) -> None:
    from PIL import Image

    from qlora_core.data.images import look_at_images

    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    rows = read(written(tmp_path, {"image": "a.png", "question": "Q", "answer": "A"}))
    assert [f.kind for f in look_at_images(rows)] == ["image huge"]
