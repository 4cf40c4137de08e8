"""Every family's format against strings worked by hand, and the properties that the trainer relies on."""

import jinja2
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from Firefly.component.prompt import check_one_prompt, encode_conversation, record_to_messages
from Firefly.component.template import TEMPLATES, use_template

S, U1, A1, U2, A2 = "你是诗人。", "你好", "您好！", "再见", "下次见。"
TWO_TURNS = record_to_messages(
    {"system": S, "conversation": [{"human": U1, "assistant": A1}, {"human": U2, "assistant": A2}]}
)
ONE_TURN = record_to_messages({"conversation": [{"human": U1, "assistant": A1}]})

IM = ["<|im_start|>", "<|im_end|>"]
THINK = [*IM, "<think>", "</think>"]
LLAMA3 = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")

# name: bos, eos, other special tokens of the family's tokenizers
SPECIAL = {
    "default": (None, "<eos>", []),
    "qwen": (None, "<|endoftext|>", IM),
    "qwen3": (None, "<|im_end|>", THINK),
    "minicpm": ("<s>", "</s>", []),
    "minicpm3": ("<s>", "</s>", IM),
    "minicpm4": ("<s>", "</s>", IM),
    "minicpm5": ("<s>", "</s>", THINK),
    "yi": ("<|startoftext|>", "<|endoftext|>", IM),
    "internlm2": ("<s>", "</s>", IM),
    "llama2": ("<s>", "</s>", []),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", LLAMA3),
    "mistral": ("<s>", "</s>", []),
    "mixtral": ("<s>", "</s>", []),
    "gemma": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "phi3": ("<s>", "<|endoftext|>", ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]),
    "zephyr": ("<s>", "</s>", []),
    "vicuna": ("<s>", "</s>", []),
    "baichuan": ("<s>", "</s>", ["<reserved_102>", "<reserved_103>"]),
    "baichuan2": ("<s>", "</s>", ["<reserved_106>", "<reserved_107>"]),
    "deepseek": (*DEEPSEEK, []),
    "xverse": ("<|startoftext|>", "<|endoftext|>", []),
    "orion": ("<s>", "</s>", []),
    "ziya2": ("<s>", "</s>", ["<human>", "<bot>"]),
    "chatglm2": ("<sop>", "</s>", ["[gMASK]", "sop"]),
    "chatglm3": ("<sop>", "</s>", ["[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>"]),
}

CHATML_TWO = (
    "<|im_start|>system\n你是诗人。<|im_end|>\n"
    "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n您好！<|im_end|>\n"
    "<|im_start|>user\n再见<|im_end|>\n<|im_start|>assistant\n下次见。<|im_end|>\n"
)
CHATML_ONE = "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n您好！<|im_end|>\n"
NO_THINKING_TWO = (
    "<|im_start|>system\n你是诗人。<|im_end|>\n"
    "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n您好！<|im_end|>\n"
    "<|im_start|>user\n再见<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n下次见。<|im_end|>\n"
)
NO_THINKING_ONE = "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n您好！<|im_end|>\n"
HELPFUL = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
INTERNLM2 = (
    "<|im_start|>system\nYou are an AI assistant whose name is InternLM (书生·浦语).\n"
    "- InternLM (书生·浦语) is a conversational language model that is developed by Shanghai AI Laboratory "
    "(上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n"
    "- InternLM (书生·浦语) can understand and communicate fluently in the language chosen by the user such as "
    "English and 中文.<|im_end|>\n"
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
MISTRAL = (
    "<s> [INST] 你是诗人。\n\n你好 [/INST] 您好！</s> [INST] 再见 [/INST] 下次见。</s>",
    "<s> [INST] 你好 [/INST] 您好！</s>",
)

# name: two turns with a system message, one turn without
EXPECTED = {
    "default": (
        "System: 你是诗人。\n\nUser: 你好\nAssistant: 您好！<eos>User: 再见\nAssistant: 下次见。<eos>",
        "User: 你好\nAssistant: 您好！<eos>",
    ),
    "qwen": (CHATML_TWO, HELPFUL + CHATML_ONE),
    "qwen3": (NO_THINKING_TWO, NO_THINKING_ONE),
    "minicpm": (
        "<s>你是诗人。<用户>你好<AI>您好！</s><用户>再见<AI>下次见。</s>",
        "<s><用户>你好<AI>您好！</s>",
    ),
    "minicpm3": ("<s>" + CHATML_TWO, "<s>" + CHATML_ONE),
    "minicpm4": ("<s>" + CHATML_TWO, "<s>" + HELPFUL + CHATML_ONE),
    "minicpm5": ("<s>" + NO_THINKING_TWO, "<s>" + NO_THINKING_ONE),
    "yi": (CHATML_TWO, CHATML_ONE),
    "internlm2": ("<s>" + CHATML_TWO, "<s>" + INTERNLM2 + CHATML_ONE),
    "llama2": (
        "<s>[INST] <<SYS>>\n你是诗人。\n<</SYS>>\n\n你好 [/INST] 您好！ </s><s>[INST] 再见 [/INST] 下次见。 </s>",
        "<s>[INST] 你好 [/INST] 您好！ </s>",
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n你是诗人。<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n你好<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n您好！<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n再见<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n下次见。<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n你好<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n您好！<|eot_id|>",
    ),
    "mistral": MISTRAL,
    "mixtral": MISTRAL,
    "gemma": (
        "<bos><start_of_turn>user\n你是诗人。\n\n你好<end_of_turn>\n<start_of_turn>model\n您好！<end_of_turn>\n"
        "<start_of_turn>user\n再见<end_of_turn>\n<start_of_turn>model\n下次见。<end_of_turn>\n",
        "<bos><start_of_turn>user\n你好<end_of_turn>\n<start_of_turn>model\n您好！<end_of_turn>\n",
    ),
    "phi3": (
        "<|system|>\n你是诗人。<|end|>\n<|user|>\n你好<|end|>\n<|assistant|>\n您好！<|end|>\n"
        "<|user|>\n再见<|end|>\n<|assistant|>\n下次见。<|end|>\n",
        "<|user|>\n你好<|end|>\n<|assistant|>\n您好！<|end|>\n",
    ),
    "zephyr": (
        "<s><|system|>\n你是诗人。</s>\n<|user|>\n你好</s>\n<|assistant|>\n您好！</s>\n"
        "<|user|>\n再见</s>\n<|assistant|>\n下次见。</s>\n",
        "<s><|user|>\n你好</s>\n<|assistant|>\n您好！</s>\n",
    ),
    "vicuna": (
        "<s>你是诗人。 USER: 你好 ASSISTANT: 您好！</s>USER: 再见 ASSISTANT: 下次见。</s>",
        f"<s>{VICUNA} USER: 你好 ASSISTANT: 您好！</s>",
    ),
    "baichuan": (
        "你是诗人。<reserved_102>你好<reserved_103>您好！</s><reserved_102>再见<reserved_103>下次见。</s>",
        "<reserved_102>你好<reserved_103>您好！</s>",
    ),
    "baichuan2": (
        "你是诗人。<reserved_106>你好<reserved_107>您好！</s><reserved_106>再见<reserved_107>下次见。</s>",
        "<reserved_106>你好<reserved_107>您好！</s>",
    ),
    "deepseek": (
        "<｜begin▁of▁sentence｜>你是诗人。\n\nUser: 你好\n\nAssistant: 您好！<｜end▁of▁sentence｜>"
        "User: 再见\n\nAssistant: 下次见。<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>User: 你好\n\nAssistant: 您好！<｜end▁of▁sentence｜>",
    ),
    "xverse": (
        "你是诗人。\n\nHuman: 你好\n\nAssistant: 您好！<|endoftext|>Human: 再见\n\nAssistant: 下次见。<|endoftext|>",
        "Human: 你好\n\nAssistant: 您好！<|endoftext|>",
    ),
    "orion": (
        "<s>Human: 你是诗人。\n\n你好\n\nAssistant: </s>您好！</s>Human: 再见\n\nAssistant: </s>下次见。</s>",
        "<s>Human: 你好\n\nAssistant: </s>您好！</s>",
    ),
    "ziya2": (
        "<s><human>:你是诗人。\n\n你好\n<bot>:您好！</s>\n<human>:再见\n<bot>:下次见。</s>\n",
        "<s><human>:你好\n<bot>:您好！</s>\n",
    ),
    "chatglm2": (
        "[gMASK]sop[Round 1]\n\n问：你是诗人。\n\n你好\n\n答：您好！</s>\n\n[Round 2]\n\n问：再见\n\n答：下次见。</s>\n\n",
        "[gMASK]sop[Round 1]\n\n问：你好\n\n答：您好！</s>\n\n",
    ),
    "chatglm3": (
        "[gMASK]sop<|system|>\n 你是诗人。<|user|>\n 你好<|assistant|>\n 您好！</s>"
        "<|user|>\n 再见<|assistant|>\n 下次见。</s>",
        "[gMASK]sop<|user|>\n 你好<|assistant|>\n 您好！</s>",
    ),
}

# Families that put a space between prompt and answer. The answer carries it, see template_registry.py.
SPACE_BEFORE_ANSWER = {"default", "llama2", "mistral", "mixtral", "vicuna", "deepseek", "xverse", "chatglm3"}


# How Qwen's and Llama 3's tokenizers cut text before BPE: a run of line breaks is one piece. The rest get GPT-2's cut.
CUTS_LIKE_QWEN = {"qwen", "qwen3", "llama3", "minicpm5"}
QWEN_CUT = r"""[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
TRAINING_TEXTS = [text for pair in EXPECTED.values() for text in pair] + [':"', ']"'] * 20


def make_tokenizer(bos, eos, extra=(), cut_like_qwen=False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the texts of this file, so that what may merge does merge."""
    bpe = Tokenizer(models.BPE())
    cut = [pre_tokenizers.Split(Regex(QWEN_CUT), "isolated")] if cut_like_qwen else []
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cut_like_qwen)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*cut, to_bytes])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[token for token in (bos, eos, *extra) if token],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TRAINING_TEXTS * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=list(extra),
    )


@pytest.fixture(scope="module", params=list(TEMPLATES))
def family(request):
    """The name of a template and a tokenizer of its family that carries it."""
    tokenizer = make_tokenizer(*SPECIAL[request.param], cut_like_qwen=request.param in CUTS_LIKE_QWEN)
    stop_word = use_template(tokenizer, request.param)
    return request.param, tokenizer, stop_word


def render(tokenizer, messages, add_generation_prompt=False) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)


def test_every_family_is_tested_and_minicpm4_has_its_default_system():
    assert set(TEMPLATES) == set(EXPECTED) == set(SPECIAL)
    assert TEMPLATES["minicpm4"].default_system == "You are a helpful assistant."


def test_renders_what_was_worked_by_hand(family):
    name, tokenizer, _ = family
    assert render(tokenizer, TWO_TURNS) == EXPECTED[name][0]
    assert render(tokenizer, ONE_TURN) == EXPECTED[name][1]


def test_each_prompt_is_a_prefix_and_the_answer_with_its_stop_word_follows(family):
    name, tokenizer, stop_word = family
    for messages in (TWO_TURNS, ONE_TURN):
        text = render(tokenizer, messages)
        for k, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = render(tokenizer, messages[:k], add_generation_prompt=True)
            assert text.startswith(prompt)
            assert not prompt.endswith(" ")  # a space at the end is another token than the space before a word
            lead = " " if name in SPACE_BEFORE_ANSWER else ""
            tail = " " if name == "llama2" else ""
            assert text[len(prompt) :].startswith(lead + message["content"] + tail + stop_word)


def test_stop_word_is_one_token_and_is_trained(family):
    _, tokenizer, stop_word = family
    (stop_id,) = tokenizer.encode(stop_word, add_special_tokens=False)
    ids, labels = encode_conversation(tokenizer, TWO_TURNS)
    targets = [label for label in labels if label != -100]
    assert targets.count(stop_id) == 2
    assert targets[-1] == stop_id
    assert len(targets) < len(ids)


def test_training_and_inference_tokens_agree(family):
    _, tokenizer, _ = family
    lists = record_to_messages({"conversation": [{"human": "列表 ", "assistant": "1. **甲**\n2. 乙"}]})
    assert check_one_prompt(tokenizer, [TWO_TURNS, ONE_TURN, lists]) == 4


@pytest.mark.parametrize("name", sorted(SPACE_BEFORE_ANSWER))
def test_a_quote_at_the_start_of_an_answer_does_not_melt_into_the_prompt(name):
    tokenizer = make_tokenizer(*SPECIAL[name])
    use_template(tokenizer, name)
    assert len(tokenizer.encode(':"')) == len(tokenizer.encode(']"')) == 1  # would swallow the end of the prompt
    quoted = record_to_messages({"conversation": [{"human": "谁说的？", "assistant": '"学而时习之"'}]})
    assert check_one_prompt(tokenizer, [quoted]) == 1


def test_plain_jinja_renders_the_same(family):
    """Without transformers' trim_blocks and lstrip_blocks: what another engine's plain Jinja sees."""
    name, tokenizer, _ = family
    plain = jinja2.Environment().from_string(tokenizer.chat_template)
    values = {"messages": TWO_TURNS, "bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    assert plain.render(**values) == EXPECTED[name][0]
    assert plain.render(**values | {"messages": ONE_TURN, "add_generation_prompt": False}) == EXPECTED[name][1]


def test_content_is_rendered_as_it_is(family):
    """Jinja's and Python's own signs, quotes and outer white space are content like any other."""
    _, tokenizer, _ = family
    content = " {{ bos_token }} {% if %} \\n \"双引号\" '单' \n"
    assert content in render(tokenizer, [{"role": "user", "content": content}], add_generation_prompt=True)


def test_an_empty_system_message_means_no_system_text():
    tokenizer = make_tokenizer(*SPECIAL["minicpm4"])
    use_template(tokenizer, "minicpm4")
    text = render(tokenizer, [{"role": "system", "content": ""}, {"role": "user", "content": "你好"}])
    assert text == "<s><|im_start|>user\n你好<|im_end|>\n"


def test_a_late_system_message_and_an_unknown_role_are_refused(family):
    _, tokenizer, _ = family
    for role in ("system", "tool"):
        with pytest.raises(jinja2.TemplateError, match="系统消息只能放在对话的第一条"):
            render(tokenizer, [*ONE_TURN, {"role": role, "content": "x"}])


def test_a_system_text_with_no_user_turn_to_hold_it_is_refused_not_lost():
    tokenizer = make_tokenizer(*SPECIAL["gemma"])
    use_template(tokenizer, "gemma")
    with pytest.raises(jinja2.TemplateError, match="从 user 开始"):
        render(tokenizer, [{"role": "system", "content": S}, {"role": "assistant", "content": A1}])
