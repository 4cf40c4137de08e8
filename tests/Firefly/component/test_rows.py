"""Which adapter answers a row, and how a prompt that is too long is made to fit."""

import argparse
from dataclasses import replace
from types import SimpleNamespace

import pytest

from Firefly.component.errors import UserError
from Firefly.component.inference import Request
from Firefly.component.rows import add_row_flags, by_adapter, choose_adapter, fit, plan_rows
from Firefly.component.session import Sampling, Session


def make_session(context: int = 100, max_new_tokens: int = 20, adapters: tuple[str, ...] = ()) -> Session:
    """One token a character and one for each message, so that lengths can be counted by hand."""
    session = Session(
        model="m",
        model_dir=None,
        adapters=dict.fromkeys(adapters),
        tokenizer=None,
        stop_ids=(0,),
        sampling=Sampling(max_new_tokens, 0.0, 1.0, 0, 1.0, 42),
        context=context,
    )
    encode = lambda request: [1 for m in request.messages for _ in m["content"] + "|"]  # noqa: E731
    object.__setattr__(session, "encode", encode)
    object.__setattr__(session, "fingerprint", lambda: {})
    return session


def ask(*contents: str, system: str | None = None, **fields) -> Request:
    messages = [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(contents)]
    return Request(0, [{"role": "system", "content": system}] * bool(system) + messages, fields, "x.jsonl:1")


def contents(request: Request) -> list[str]:
    return [message["content"] for message in request.messages]


def test_what_fits_is_left_alone():
    request = ask("问" * 79)  # 80 tokens and room for 20
    assert fit(make_session(), request) is request


def test_the_end_of_the_question_and_the_system_text_stay():
    fitted = fit(make_session(), ask("头" * 50 + "尾" * 60, system="系" * 9))
    assert contents(fitted) == ["系" * 9, "头" * 9 + "尾" * 60]  # 10 + 70 = 80 exactly
    assert fitted.fields == {}


def test_oldest_turns_go_before_the_question_is_cut():
    long = ask("一" * 30, "二" * 30, "三" * 20, "四" * 20, "五" * 30, system="系")
    assert contents(fit(make_session(), long)) == ["系", "三" * 20, "四" * 20, "五" * 30]
    assert contents(fit(make_session(), ask("一", "二", "五" * 200))) == ["五" * 79]


def test_the_answer_gets_a_quarter_of_the_context_at_most():
    fitted = fit(make_session(max_new_tokens=512), ask("问" * 300))
    assert len(contents(fitted)[0]) == 74


def test_a_system_text_that_is_too_long_is_an_error():
    with pytest.raises(UserError, match="x.jsonl:1：系统提示本身就超过了 80 个 token"):
        fit(make_session(), ask("问", system="系" * 80))


def plan(session: Session, *flags: str):
    parser = argparse.ArgumentParser()
    add_row_flags(parser)
    return plan_rows(session, parser.parse_args(flags))


def test_the_notice_counts_the_rows_once_and_names_the_first(capsys):
    requests = [replace(ask("问" * n), where=f"x.jsonl:{k}") for k, n in enumerate((5, 80, 300), 1)]
    rows = plan(make_session())
    rows.check(requests)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "2 行的提示超过 80 个 token（模型最多 100 个），从 x.jsonl:2 起" in error
    rows.check(requests[:1])
    assert capsys.readouterr().err == ""
    strict = plan(make_session(), "--no-truncate")
    strict.check(requests[:2])  # 81 of 100: short of room, but it fits
    with pytest.raises(UserError, match="x.jsonl:3：提示有 301 个 token，模型最多 100 个"):
        strict.check(requests)
    assert strict.fit(requests[2]) is requests[2]


@pytest.mark.parametrize(
    ("names", "use", "field", "chosen"),
    [
        ([], None, None, None),
        ([], None, "base", None),
        (["a"], None, None, "a"),
        (["a"], None, "base", None),
        (["a"], "base", None, None),
        (["a", "b"], "b", None, "b"),
        (["a", "b"], "b", "a", "a"),
        (["a", "base"], "base", None, "base"),
    ],
)
def test_the_row_goes_before_the_flag_before_the_only_one(names, use, field, chosen):
    fields = {} if field is None else {"adapter": field}
    assert choose_adapter(names, use, ask("问", **fields)) == chosen


@pytest.mark.parametrize(
    ("names", "field", "says"),
    [
        (["a", "b"], {}, "有 2 个适配器（a、b），请用 --use-adapter"),
        (["a"], {"adapter": "c"}, "x.jsonl:1：adapter 字段 'c'：没有这个适配器，有的是：a、base"),
        (["a"], {"adapter": ["a"]}, "没有这个适配器"),
        ([], {"adapter": "a"}, "有的是：base"),
    ],
)
def test_a_row_is_never_answered_by_the_wrong_adapter(names, field, says):
    with pytest.raises(UserError, match=says):
        choose_adapter(names, None, ask("问", **field))


def test_an_unknown_use_adapter_is_said_at_once():
    with pytest.raises(UserError, match="--use-adapter 'x'：没有这个适配器，有的是：a、base"):
        plan(make_session(adapters=("a",)), "--use-adapter", "x")


def test_a_chat_forgets_in_its_own_way():
    rows = plan_rows(make_session(), SimpleNamespace(interactive=True))
    with pytest.raises(UserError, match="提示有 301 个 token"):
        rows.check([ask("问" * 300)])


def test_rows_are_grouped_by_adapter():
    rows = plan(make_session(adapters=("a", "b")))
    requests = [replace(ask("问", adapter=name), index=k) for k, name in enumerate(["b", "base", "b", "a"])]
    groups = [(name, [r.index for r in own]) for name, own in by_adapter(requests, rows)]
    assert groups == [("b", [0, 2]), (None, [1]), ("a", [3])]
