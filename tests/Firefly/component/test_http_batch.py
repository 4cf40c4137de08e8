"""The continuous batch on a real tiny model: each row answers as it would alone, whatever comes and goes beside it."""

import queue
from dataclasses import replace

import pytest

from Firefly.component.generate import generate_batch, load_model
from Firefly.component.http_batch import Batcher, QueueFull
from Firefly.component.http_stream import Stream
from Firefly.component.inference import Request
from Firefly.component.session import choose_device, open_session
from inference_with_transformers import build_parser

QUESTIONS = ["你是谁？", "请介绍一下哈尔滨工业大学的校训，以及它的来历。", "威海", "怎样写好一篇作文？" * 9] * 3


@pytest.fixture(scope="module")
def loaded(tiny_minicpm):
    args = build_parser().parse_args(["--model", str(tiny_minicpm), "--max-new-tokens", "24"])
    session = open_session(args)
    return session, load_model(session, *choose_device(args))


@pytest.fixture
def batcher(loaded):
    made = []

    def make(rows=4, waiting=64, max_tokens=65536):
        made.append(Batcher(loaded[1], rows, waiting, max_tokens))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Asked:
    """A stream and what came out of it."""

    def __init__(self, session, question, stop=(), seed=0, **sampling):
        self.pieces = queue.Queue()
        self.request = Request(seed, [{"role": "user", "content": question}])
        self.session = replace(session, sampling=replace(session.sampling, seed=seed, **sampling))
        prompt = session.encode(self.request)
        self.stream = Stream(session, prompt, self.session.sampling, self.pieces.put, stop)

    def text(self):
        text, finish = "", None
        while finish is None:
            piece = self.pieces.get(timeout=60)
            text, finish = text + piece.text, piece.finish
        if finish != "error" and "\ufffd" not in self.stream.answer:  # a random model's loose bytes
            assert text == self.stream.answer
        return self.stream.answer, finish

    def alone(self, model):
        session = replace(self.session, sampling=replace(self.session.sampling, seed=0))  # generate adds the row number
        (completion,) = generate_batch(model, session, [self.request])
        return completion.text, completion.finish_reason


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.2}]
)
@pytest.mark.parametrize("max_tokens", [65536, 300])  # 300: rows are put back and read again
def test_rows_answer_as_alone(loaded, batcher, sampling, max_tokens):
    session, model = loaded
    asked = [
        Asked(session, question, seed=number, max_new_tokens=8 + 3 * (number % 5), **sampling)
        for number, question in enumerate(QUESTIONS)
    ]
    running = batcher(max_tokens=max_tokens)
    for one in asked:
        running.submit(one.stream)
    assert [one.text() for one in asked] == [one.alone(model) for one in asked]
    assert running.counts() == (0, 0)


def test_rows_that_are_put_back_are_counted(loaded, batcher, monkeypatch):
    """The case above is only worth something if rows are put back in it at all."""
    session, _ = loaded
    back = []
    running = batcher(max_tokens=300)
    keep = running._keep
    monkeypatch.setattr(running, "_keep", lambda kept: (back.append(len(running.waiting)), keep(kept)))
    asked = [Asked(session, QUESTIONS[2], max_new_tokens=60) for _ in range(4)]
    for one in asked:
        running.submit(one.stream)
    texts = [one.text() for one in asked]
    assert len(set(texts)) == 1
    assert max(back) > 0


def test_a_long_prompt_is_read_in_chunks_while_others_go_on(loaded, batcher, monkeypatch):
    from Firefly.component import http_batch

    monkeypatch.setattr(http_batch, "PREFILL", 16)
    session, model = loaded
    running = batcher()
    short, long = Asked(session, "威海", max_new_tokens=24), Asked(session, QUESTIONS[3], max_new_tokens=4)
    running.submit(short.stream)
    short.pieces.get(timeout=60)
    running.submit(long.stream)
    long_text = long.text()
    assert len(short.stream.ids) > 8, "the short one was answered further in between"
    assert long_text == long.alone(model)


def test_a_cancelled_row_and_a_cancelled_place_in_the_queue_are_freed(loaded, batcher):
    session = replace(loaded[0], stop_ids=(10**9,))  # never ends by itself
    running = batcher(rows=1, waiting=2)
    endless, waits, last = (Asked(session, "威海", max_new_tokens=n) for n in (30_000, 3, 3))
    running.submit(endless.stream)
    endless.pieces.get(timeout=60)
    running.submit(waits.stream)
    running.submit(last.stream)
    with pytest.raises(QueueFull):
        running.submit(last.stream)
    waits.stream.cancelled = endless.stream.cancelled = True
    assert last.text()[1] == "length"
    assert len(endless.stream.ids) < 1000
    assert waits.stream.ids == []
    assert running.cache is None


def test_first_come_first_served(loaded, batcher):
    session = replace(loaded[0], stop_ids=(10**9,))
    order = []
    running = batcher(rows=2)
    asked = [Asked(session, "你" * (1 + number % 3 * 40), max_new_tokens=3) for number in range(8)]
    for number, one in enumerate(asked):
        put = one.stream.emit
        one.stream.emit = lambda piece, number=number, put=put: (order.append(number), put(piece))
        running.submit(one.stream)
    for one in asked:
        one.text()
    assert list(dict.fromkeys(order)) == sorted(set(order))


def test_a_failure_ends_these_answers_and_not_the_service(loaded, batcher, monkeypatch):
    session, model = loaded
    running = batcher()
    monkeypatch.setattr(model, "forward", lambda **kwargs: 1 / 0)
    broken = Asked(session, "威海")
    running.submit(broken.stream)
    assert broken.text() == ("", "error")
    monkeypatch.undo()
    good = Asked(session, "威海")
    running.submit(good.stream)
    assert good.text() == good.alone(model)


def test_stop_strings_end_the_answer_and_never_show(loaded, batcher):
    session, _ = loaded
    running = batcher()
    whole = Asked(session, QUESTIONS[1])
    running.submit(whole.stream)
    text, _ = whole.text()
    assert len(text) > 8
    word = text[4:7]
    cut = Asked(session, QUESTIONS[1], stop=("没有这个", word))
    running.submit(cut.stream)
    assert cut.text() == (text[: text.index(word)], "stop")
    assert len(cut.stream.ids) <= len(whole.stream.ids)


def test_an_answer_ends_at_the_context(loaded, batcher):
    session = replace(loaded[0], stop_ids=(10**9,))
    short = replace(session, context=len(session.encode(Request(0, [{"role": "user", "content": "威海"}]))) + 5)
    asked = Asked(short, "威海", max_new_tokens=10**30)
    batcher().submit(asked.stream)
    assert asked.text()[1] == "length"
    assert len(asked.stream.ids) == 5


def test_closing_tells_those_who_wait(loaded, batcher):
    session = replace(loaded[0], stop_ids=(10**9,))
    running = batcher(rows=1)
    asked = [Asked(session, "威海", max_new_tokens=30_000) for _ in range(2)]
    for one in asked:
        running.submit(one.stream)
    running.close()
    assert [one.text()[1] for one in asked] == ["error", "error"]
