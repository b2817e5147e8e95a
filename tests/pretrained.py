"""Tokenizers as other models have them, small, in the layouts of Llama 3, Llama 2 and Qwen 2."""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    "What is the sea? The sea is deep, and the tide is slow. def tide(moon): return moon * 2",
    "user assistant system INST kate mori suna lope wida teka 0 1 2 3 4 5 6 7 8 9",
    "Τι είναι η θάλασσα; Η θάλασσα είναι βαθιά και το κύμα αργό.",
    "ทะเลคืออะไร ทะเลลึกและคลื่นช้า\n\n海是什么？海很深，潮水很慢。",
]
LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3_CHAT = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
QWEN_CHAT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Files = dict[str, bytes]


def _as_bytes(core: Tokenizer, words: str, size: int) -> None:
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(TEXTS * 3, trainer)


def _files(core: Tokenizer, config: Mapping[str, Any], **others: Any) -> Files:
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    content["clean_up_tokenization_spaces"] = False
    found = {"tokenizer_config.json": content, **others}
    files = {name: json.dumps(value, ensure_ascii=False).encode() for name, value in found.items()}
    return {"tokenizer.json": core.to_str().encode(), **files}


def llama_3(**config: Any) -> Files:
    """Byte-level BPE with its special tokens at the end."""
    core = Tokenizer(models.BPE(ignore_merges=True))
    _as_bytes(core, LLAMA_3_WORDS, 380)
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    special += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    bos = special[0]
    template = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
    )
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    named = {"bos_token": bos, "eos_token": special[1], "chat_template": LLAMA_3_CHAT}
    ends = [core.token_to_id(token) for token in (special[1], special[4])]
    generation = {"bos_token_id": ends[0] - 1, "eos_token_id": ends, "temperature": 0.6}
    return _files(core, {**named, **config}, **{"generation_config.json": generation})


def llama_2(metaspace: bool = False, **config: Any) -> Files:
    """BPE with byte fallback, a space before texts (of the old kind, behind special tokens, too; or
    `metaspace`, only at the beginning), and its special tokens among the first words."""
    core = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=special, show_progress=False, limit_alphabet=90
    )
    core.train_from_iterator(" ".join(TEXTS * 3).split(), trainer)
    content = json.loads(core.to_str())
    merges, words = content["model"]["merges"], list(content["model"]["vocab"])[3:]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = [*special, *fallback, *words]
    content["model"]["vocab"] = {word: number for number, word in enumerate(vocabulary)}
    content["model"]["merges"] = merges
    core = Tokenizer.from_str(json.dumps(content))
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*spaces, decoders.Strip(" ", 1, 0)])
    if metaspace:
        core.normalizer = None
        core.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    named = {
        "bos_token": {"content": "<s>", "lstrip": False, "__type": "AddedToken"},
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": MISTRAL_CHAT,
    }
    return _files(core, {**named, **config}, **{"generation_config.json": {"eos_token_id": 2}})


def qwen_2(**config: Any) -> Files:
    """Byte-level BPE without a token that begins texts."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    _as_bytes(core, LLAMA_3_WORDS.replace("{1,3}", ""), 350)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    core.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    named = {
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": QWEN_CHAT,
        "add_bos_token": False,
    }
    first, _, end = (core.token_to_id(token) for token in special)
    generation = {"bos_token_id": first, "eos_token_id": [end, first], "top_k": 20}
    return _files(core, {**named, **config}, **{"generation_config.json": generation})


LAYOUTS = {
    "llama 3": llama_3,
    "llama 2": llama_2,
    "llama 2, metaspace": lambda **config: llama_2(metaspace=True, **config),
    "qwen 2": qwen_2,
}
