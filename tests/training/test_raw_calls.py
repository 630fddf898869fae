from __future__ import annotations

import csv
import io
import json

import pandas as pd
import pytest

from training.errors import DataError
from training.raw_calls import Fields, Problems, Reading, Source, read_calls, read_problems

CALL = {"conversation_id": "c1", "input_text": "客户:多扣了我钱", "complaint_category": "收费争议"}


def read(path, reading=None, **source):
    """The calls of a file, and its problems as they are told."""
    reading = reading or Reading()
    one = Source(path=path, **source)
    problems = Problems(reading.most_problems)
    calls = list(read_calls(one, reading, problems))
    return calls, read_problems([(one, problems)], reading.fields.category)


def jsonl(tmp_path, *records, encoding="utf-8"):
    path = tmp_path / "calls.jsonl"
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return path


def test_the_three_formats_give_the_same_calls(tmp_path):
    """Written by the standard library and by pandas."""
    rows = [CALL | {"metadata": json.dumps({"customer_id": "k1"})}, CALL | {"conversation_id": "c2"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*CALL, "metadata"])
        writer.writeheader()
        writer.writerows(rows)
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    found = [read(tmp_path / f"a.{kind}") for kind in ("jsonl", "csv", "parquet")]
    assert [problems for _, problems in found] == [[], [], []]
    told = [[(c.conversation_id, c.text, c.category, c.customer) for c in calls] for calls, _ in found]
    assert told[0] == [("c1", "客户:多扣了我钱", "收费争议", "k1"), ("c2", "客户:多扣了我钱", "收费争议", None)]
    assert told[0] == told[1] == told[2]


def test_turns_become_lines_in_the_order_of_their_time(tmp_path):
    turns = [
        {"speaker": "customer", "text": "多扣了\n我钱", "start_s": 7.5},
        {"speaker": "坐席1", "text": "您好", "start_s": 0},
        {"speaker": "agent", "text": " ", "start_s": 9},
    ]
    calls, problems = read(jsonl(tmp_path, CALL | {"turns": turns}))
    assert problems == []
    assert calls[0].text == "客服:您好\n客户:多扣了 我钱"


def test_a_site_s_own_names_are_mapped(tmp_path):
    record = {
        "编号": 17,
        "对话": [{"谁": "机主", "话": "多扣钱"}],
        "类型": "资费投诉",
        "信息": {"客户": {"号": 5}},
        "渠道": "热线",
        "分": "0.75",
    }
    reading = Reading(
        fields=Fields(
            conversation_id="编号", turns="对话", speaker="谁", turn_text="话", category="类型", metadata="信息",
            customer="信息.客户.号", kept=("渠道",), confidence="分",
        ),
        categories={"资费投诉": "收费争议"},
        speakers={"机主": "客户"},
    )  # fmt: skip
    (call,), problems = read(jsonl(tmp_path, record), reading)
    assert problems == []
    assert (call.conversation_id, call.text, call.category) == ("17", "客户:多扣钱", "收费争议")
    assert (call.customer, call.confidence, call.metadata["渠道"]) == ("5", 0.75, "热线")


def test_metadata_as_json_text_is_reached_into_under_its_own_name(tmp_path):
    record = {**CALL, "complaint_category": 7, "信息": '{"客户": "k9", "template_id": 3}'}
    reading = Reading(
        fields=Fields(metadata="信息", customer="信息.客户", template="信息.template_id"), categories={"7": "退款退换"}
    )
    (call,), problems = read(jsonl(tmp_path, record), reading)
    assert problems == []
    assert (call.customer, call.template, call.category) == ("k9", "3", "退款退换")


def test_letters_and_names_of_categories_need_no_mapping(tmp_path):
    calls, problems = read(jsonl(tmp_path, CALL | {"complaint_category": "D"}))
    assert problems == []
    assert calls[0].category == "网络/产品质量"


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ('{"conversation_id": "c1", "input', "line 2, record: not JSON at place 27"),
        ("[1, 2]", "line 2, record: got '[1, 2]', allowed is an object"),
        ({**CALL, "input_text": "  "}, "line 2, input_text: got ''"),
        ({**CALL, "input_text": 5}, "line 2, input_text: got '5'"),
        ({"input_text": "x", "complaint_category": "A"}, "line 2, conversation_id: got nothing"),
        (
            {**CALL, "complaint_category": "资费"},
            "line 2, complaint_category: got '资费' (1 call), allowed are 收费争议",
        ),
        ({**CALL, "complaint_category": None}, "line 2, complaint_category: got nothing"),
        ({**CALL, "confidence_score": 80}, "line 2, confidence_score: got '80', allowed is a number from 0 to 1"),
        (
            '{"conversation_id": "c", "input_text": "x", "complaint_category": "A", "confidence_score": NaN}',
            "from 0 to 1",
        ),
        ({**CALL, "confidence_score": True}, "line 2, confidence_score: got 'true'"),
        ({**CALL, "turns": []}, "line 2, turns: got '[]', allowed is a list of turns"),
        ({**CALL, "turns": ["x"]}, "line 2, turns[0]: got 'x', allowed is an object with speaker and text"),
        (
            {**CALL, "turns": [{"speaker": "机器人", "text": "x"}]},
            "turns[0].speaker: got '机器人', allowed are 客户, 用户",
        ),
        ({**CALL, "turns": [{"speaker": "客户", "text": 1}]}, "turns[0].text: got '1', allowed is text"),
        ({**CALL, "turns": [{"speaker": "客户", "text": "x", "start_s": -1}]}, "turns[0].start_s: got '-1'"),
        ({**CALL, "turns": [{"speaker": "客户", "text": ""}]}, "turns: got turns without any text"),
        ({**CALL, "metadata": 3}, "line 2, metadata: got '3', allowed is an object"),
        (
            '{"conversation_id": "c\\ud800", "input_text": "x", "complaint_category": "A"}',
            "line 2, conversation_id: got 'c?'",
        ),
    ],
)
def test_what_is_wrong_is_told_with_line_field_and_what_is_allowed(tmp_path, record, told):
    calls, problems = read(jsonl(tmp_path, CALL, record))
    assert len(calls) == 1
    assert len(problems) == 1
    assert problems[0].startswith(str(tmp_path / "calls.jsonl"))
    assert told in problems[0]


def test_problems_are_told_together_up_to_a_bound(tmp_path):
    path = jsonl(tmp_path, *["{"] * 3, CALL, *["{"] * 50)
    calls, problems = read(path, Reading(most_problems=5))
    assert len(calls) == 1
    assert [line.partition(", record")[0].rpartition(" ")[2] for line in problems[:-1]] == ["1", "2", "3", "5", "6"]
    assert "reading stopped here" in problems[-1]


def test_an_unknown_category_is_told_once_with_its_number_of_calls(tmp_path):
    path = jsonl(tmp_path, *[CALL | {"complaint_category": "资费"}] * 300, CALL)
    calls, problems = read(path)
    assert len(calls) == 1
    assert len(problems) == 1
    assert "line 1, complaint_category: got '资费' (300 calls)" in problems[0]


def test_personal_data_in_a_wrong_record_is_not_repeated(tmp_path):
    _, problems = read(jsonl(tmp_path, CALL | {"complaint_category": "机主13812345678"}))
    assert "13812345678" not in problems[0]
    assert "<手机号1>" in problems[0]


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "big5"])
def test_another_encoding_is_named_with_what_to_write(tmp_path, encoding):
    name = "big5" if encoding == "big5" else "gb18030"
    record = CALL | {
        "input_text": "客戶:多扣了我錢" if encoding == "big5" else "客户:多扣了我钱",
        "complaint_category": "A",
    }
    path = jsonl(tmp_path, record, encoding=encoding)
    calls, problems = read(path)
    assert calls == []
    assert "line 1, encoding: byte 0x" in problems[0]
    if encoding != "big5":  # most Big5 reads as GB18030 too: nobody can tell them apart
        assert f"write `encoding: {name}`" in problems[0]
    calls, problems = read(path, encoding=name)
    assert problems == []
    assert calls[0].text == record["input_text"]


def test_utf8_with_a_byte_order_mark_is_read_and_utf16_is_named(tmp_path):
    path = tmp_path / "calls.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(CALL).encode())
    assert read(path)[1] == []
    path.write_text(json.dumps(CALL), encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16"):
        read(path)


def test_csv_errors_name_the_line_of_the_file_also_after_cells_with_line_feeds(tmp_path):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([list(CALL), ["c1", "客户:a\n客服:b", "A"], ["c2", "x", "资费"], ["c3", "x", "A", "zu viel"]])
    path = tmp_path / "calls.csv"
    path.write_text(text.getvalue())
    calls, problems = read(path)
    assert [call.text for call in calls] == ["客户:a\n客服:b"]
    assert "line 4, complaint_category" in problems[0]
    assert "line 5, record: got 4 cells, the header has 3" in problems[1]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("calls.parquet", b"PAR1nonsense", "not a Parquet file"),
        ("calls.csv", b"a,a\n1,2\n", "two columns have the same name"),
        ("calls.txt", b"", "add `format: jsonl`"),
    ],
)
def test_a_file_that_is_something_else_is_refused(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        read(tmp_path / name)


def test_a_quote_that_is_never_closed_is_told(tmp_path):
    path = tmp_path / "calls.csv"
    path.write_text('conversation_id,input_text,complaint_category\nc1,"x,A\n')
    calls, problems = read(path)
    assert calls == []
    assert "line 2, record: not CSV" in problems[0]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read(tmp_path / "calls.jsonl")
