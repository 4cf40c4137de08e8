"""Choosing a template and putting it on a tokenizer, and what a user reads when the two do not fit."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from Firefly.component import template
from Firefly.component.errors import UserError
from Firefly.component.template import get_template, template_of, use_template

MINICPM4 = ("<s>", "</s>", ["<|im_start|>", "<|im_end|>"])
QWEN = (None, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"])
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])


def make_tokenizer(bos, eos, extra=(), name_or_path="") -> PreTrainedTokenizerFast:
    """A tokenizer that knows bytes and its special tokens."""
    words = [token for token in (bos, eos, *extra) if token] + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=list(extra),
        name_or_path=name_or_path,
    )


def test_unknown_name_is_answered_with_the_nearest_and_all():
    with pytest.raises(UserError, match="minicpm_4.*是不是想写 minicpm4.*auto.*chatglm3"):
        get_template("minicpm_4")
    with pytest.raises(UserError, match="是不是想写 minicpm4"):
        get_template("MiniCPM4")


def test_auto_keeps_the_tokenizers_own_template():
    tokenizer = make_tokenizer("<s>", "</s>")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert use_template(tokenizer, "auto") is None
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert template_of(tokenizer) is None


def test_auto_without_a_template_names_the_families():
    with pytest.raises(UserError, match="没有自带对话模板.*minicpm4"):
        use_template(make_tokenizer("<s>", "</s>"), "auto")


def test_template_of_recognises_what_was_put_on():
    tokenizer = make_tokenizer(*MINICPM4)
    assert use_template(tokenizer, "minicpm4") == "<|im_end|>"
    assert template_of(tokenizer) == "minicpm4"


def test_qwen_trained_with_minicpm4_gets_a_sentence_that_names_qwen():
    qwen = make_tokenizer(*QWEN, name_or_path="Qwen/Qwen2.5-0.5B-Instruct")
    with pytest.raises(UserError, match="'minicpm4'.*没有 bos_token.*template_name='qwen'，或"):
        use_template(qwen, "minicpm4")
    assert qwen.chat_template is None  # nothing was put on


def test_a_stop_word_in_pieces_is_refused_with_the_likely_template():
    llama = make_tokenizer(*LLAMA3)
    llama.chat_template = "x"
    with pytest.raises(UserError, match=r"停止词 <\|im_end\|> 应是一个 token.*template_name='llama3'.*'auto'"):
        use_template(llama, "minicpm4")


def test_a_template_of_another_family_is_warned_of_even_where_it_could_be_learned(monkeypatch):
    """Both stop with </s>, so nothing is wrong but the prompt; a model without a template of its own may take any."""
    said: list[str] = []
    monkeypatch.setattr(template.logger, "warning", lambda message, *values: said.append(message % values))
    tokenizer = make_tokenizer(*MINICPM4)
    use_template(tokenizer, "llama2")
    assert not said
    for name in ("minicpm4", "qwen"):
        tokenizer.chat_template = get_template("minicpm4").chat_template
        use_template(tokenizer, name)
        assert not said
    use_template(tokenizer, "llama2")
    assert len(said) == 1
    assert "<|im_start|>" in said[0]
    assert "'minicpm4'" in said[0]


def test_default_ends_answers_with_eos_and_is_advised_when_nothing_else_fits():
    plain = make_tokenizer(None, "<eos>")
    with pytest.raises(UserError, match="请改用 template_name='default'，"):
        use_template(plain, "qwen")
    assert use_template(plain, "default") == "<eos>"


def test_default_needs_an_eos_token():
    with pytest.raises(UserError, match="没有 eos_token。请换成"):
        use_template(make_tokenizer(None, None), "default")


def test_a_stop_word_that_is_only_the_unknown_token_is_refused():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "hi": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<unk>")
    with pytest.raises(UserError, match="停止词 </s>"):
        use_template(tokenizer, "minicpm")
