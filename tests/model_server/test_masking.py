from __future__ import annotations

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from model_server import masking
from model_server.masking import mask
from training import calls

# 11010519491231002X is the worked example of the standard (GB 11643); 4111111111111111 and 6011000990139424 are
# the card industry's test numbers.
ID = "11010519491231002X"
CARD = "4111111111111111"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("打13812345678找我", "打<手机号1>找我"),
        ("+8613812345678", "<手机号1>"),
        ("+86 138 1234 5678,谢谢", "<手机号1>,谢谢"),
        ("138-1234-5678", "<手机号1>"),
        ("幺三八一二三四五六七八", "<手机号1>"),
        ("一三八 一二三四 五六七八", "<手机号1>"),
        ("号码幺三八零零幺三八零零零一直打不通", "号码<手机号1>一直打不通"),
        (f"证件{ID}。", "证件<身份证号1>。"),
        ("11010519491231002x", "<身份证号1>"),
        ("一一零一零五一九四九一二三一零零二叉", "<身份证号1>"),
        (f"卡号{CARD}", "卡号<银行卡号1>"),
        ("卡号6011 0009 9013 9424", "卡号<银行卡号1>"),
        ("座机010-62345678", "座机<座机号1>"),
        ("0755-2345678", "<座机号1>"),
        ("车牌粤B12345和京A·D12345", "车牌<车牌号1>和<车牌号2>"),
        ("写信给li.ming+1@mail.example.cn吧", "写信给<邮箱1>吧"),
        ("13812345678 13912345678", "<手机号1> <手机号2>"),
        (f"13812345678 {CARD}", "<手机号1> <银行卡号1>"),
    ],
)
def test_each_form_of_personal_data_becomes_its_token(text, masked):
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "多扣了128块,一共3次",
        "订单20261123000045",
        "110105194912310021",  # wrong check character
        "4111111111111112",  # fails Luhn
        "12812345678",  # no mobile number begins with 12
        "一二三四五",
        "二零二六年十一月二十三日",
        "投诉编号A12345",
    ],
)
def test_numbers_that_are_no_personal_data_stay(text):
    assert mask(text) == text


def test_the_same_value_gets_the_same_number_however_it_is_said():
    assert mask("13812345678,就是幺三八 一二三四 五六七八,不是13912345678") == "<手机号1>,就是<手机号1>,不是<手机号2>"


def test_numbering_goes_on_after_tokens_that_are_there_already():
    assert mask("<手机号1>打来,让我打13812345678") == "<手机号1>打来,让我打<手机号2>"


@given(
    st.integers(0, 10**9), st.booleans(), st.sampled_from(["", "我", ",", " ", "卡"]), st.sampled_from(["", "了", "。"])
)
def test_every_invented_number_of_the_generator_is_masked(seed, spoken, before, after):
    """The generator computes check characters by another formula than the masker."""
    rng = random.Random(seed)
    for make, kind in ((calls.fake_mobile, "手机号"), (calls.fake_id, "身份证号"), (calls.fake_card, "银行卡号")):
        number = make(rng)
        # A card of 18 digits may pass as an identity number by chance; nobody could tell which it is.
        assume(kind != "银行卡号" or len(number) != 18 or not masking._is_id(number))
        if spoken and not number.endswith("X"):
            number = number.translate(str.maketrans("0123456789", "零幺二三四五六七八九"))
        masked = mask(before + number + after)
        assert masked == f"{before}<{kind}1>{after}"


@given(st.text(alphabet="0123456789零幺二三四五六七八九Xx叉 -+@.a粤B<手机号1>客户:,", max_size=80))
def test_masking_twice_changes_nothing_more(text):
    once = mask(text)
    assert mask(once) == once


@given(st.text(max_size=200))
def test_text_without_digits_letters_and_plates_stays(text):
    plain = "".join(c for c in text if not c.isalnum() and c not in "<>@")
    assert mask(plain) == plain


def test_ten_thousand_digits_take_no_time_to_speak_of():
    """Backtracking would need minutes; the limit is two hundred times what it takes."""
    import time

    started = time.process_time()
    mask("1 3-" * 5000 + "零幺" * 5000)
    assert time.process_time() - started < 20
    assert masking.KINDS
