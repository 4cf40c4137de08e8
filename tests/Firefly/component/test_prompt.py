"""Where the loss lies, and that training and inference see the same ids: worked on a real tiny tokenizer."""

import pytest

from Firefly.component.checkpoint import load_tokenizer
from Firefly.component.errors import UserError
from Firefly.component.prompt import (
    check_one_prompt,
    encode_conversation,
    encode_conversations,
    encode_prompt,
    record_to_messages,
    target_spans,
)
from Firefly.component.template import use_template

TWO_TURNS = {
    "system": "你是校园助手。",
    "conversation": [
        {"human": "校训是什么？", "assistant": "规格严格，功夫到家。"},
        {"human": "几个校区？", "assistant": " 三个。\n"},
    ],
}


@pytest.fixture
def tokenizer(tiny_minicpm):
    tokenizer = load_tokenizer(tiny_minicpm)
    use_template(tokenizer, "minicpm4")
    return tokenizer


def test_messages_keep_system_and_every_turn():
    messages = record_to_messages(TWO_TURNS)
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[4]["content"] == "三个。"
    assert record_to_messages({"messages": [{"role": "user", "content": "好"}]}) == [{"role": "user", "content": "好"}]


@pytest.mark.parametrize(
    ("record", "word"),
    [
        ({}, "conversation"),
        ({"conversation": []}, "conversation"),
        ({"conversation": [{"human": "a"}]}, "assistant"),
        ({"conversation": [{"human": "a", "assistant": None}]}, "字符串"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "robot"),
        ({"messages": []}, "messages"),
    ],
)
def test_wrong_shapes_say_what_is_wrong(record, word):
    with pytest.raises(ValueError, match=word):
        record_to_messages(record)


def test_loss_lies_on_answers_and_stop_tokens_alone(tokenizer):
    ids, labels = encode_conversation(tokenizer, record_to_messages(TWO_TURNS))
    targets = [token if label != -100 else None for token, label in zip(ids, labels, strict=True)]
    spans, current = [], []
    for token in [*targets, None]:
        if token is None and current:
            spans.append(tokenizer.decode(current))
            current = []
        elif token is not None:
            current.append(token)
    assert spans == ["规格严格，功夫到家。<|im_end|>", "三个。<|im_end|>"]
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))


def test_training_ids_start_with_what_inference_sends(tokenizer):
    messages = record_to_messages(TWO_TURNS)
    ids, labels = encode_conversation(tokenizer, messages)
    for k in (2, 4):
        prompt = encode_prompt(tokenizer, messages[:k])
        assert ids[: len(prompt)] == prompt
        assert labels[len(prompt)] == ids[len(prompt)]
    assert ids[0] == tokenizer.bos_token_id  # MiniCPM4 has BOS, and just one
    assert ids[1] != tokenizer.bos_token_id


def test_offsets_and_prefixes_find_the_same_labels(tokenizer):
    """The fast way (character offsets) against the slow one (lengths of tokenised prefixes)."""
    from Firefly.component.prompt import _encode_by_prefixes

    conversations = [
        record_to_messages(TWO_TURNS),
        record_to_messages({"conversation": [{"human": "Hi 你", "assistant": "😀 囍 ok"}]}),
    ]
    fast = encode_conversations(tokenizer, conversations)
    slow = [_encode_by_prefixes(tokenizer, *target_spans(tokenizer, messages)) for messages in conversations]
    assert fast == slow


def test_check_names_the_first_token_that_differs(tokenizer):
    assert check_one_prompt(tokenizer, [record_to_messages(TWO_TURNS)]) == 2
    template = tokenizer.chat_template

    class AddsBosAtInference:
        """A tokenizer whose prompt, and only its prompt, begins with one token more: the old pipeline's fault."""

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, text, **kwargs):
            encoded = tokenizer(text, **kwargs)
            if isinstance(text, str):
                encoded["input_ids"] = [tokenizer.bos_token_id, *encoded["input_ids"]]
            return encoded

    with pytest.raises(UserError, match="第 2 个 token"):
        check_one_prompt(AddsBosAtInference(), [record_to_messages(TWO_TURNS)])
    assert tokenizer.chat_template == template


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}答：{% endif %}", "前缀"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "改写"),
    ],
)
def test_templates_that_hide_the_answer_are_refused(tokenizer, template, word):
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=word):
        encode_conversation(tokenizer, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}])


def test_auto_takes_a_template_with_a_thinking_block(tokenizer):
    """Qwen3's own template: an empty think block stands before the last answer. The prompt has it, so it is no target."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
    )
    single = record_to_messages({"conversation": [{"human": "校训？", "assistant": "规格严格。"}]})
    text, ((start, end),) = target_spans(tokenizer, single)
    assert text[start:end] == "规格严格。<|im_end|>"
    assert check_one_prompt(tokenizer, [single]) == 1
