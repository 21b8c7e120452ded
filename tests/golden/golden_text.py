"""Conversations, and what the tiny models' templates and tokenizers make of them."""

import random

from golden_common import POLICIES, read_json, tokenizer_of, write_json

COUNT = 200
PIECES = [
    "please", "write", "a", "story", "about", "the", "fox", "and", "the", "lamp", "why", "does", "it",
    "rain", "42", "3.14", "1999", "x=7;", "don't", "we'll", "(maybe)", "\"quoted\"", "<b>bold</b>",
    "a&b", "naïve", "café", "Ünïcödé", "日本語", "你好", "Привет", "مرحبا", "🙂", "👩‍👩‍👧", "e\u0301",
    "\u00a0", "tab\there", "line\nbreak", "two\n\nlines", "  spaces  ", "{{ braces }}", "{% if %}",
    "\\n", "'single'", "CAPS", "snake_case", "http://a.b/c?d=e", "##", "- item", "…", "—", "\u200b", "٣",
]
SPECIAL_WORDS = ["<|im_end|>", "<|im_start|>user", "<|endoftext|>", "<s>", "</s>", "[INST]"]


def text(source):
    kind = source.random()
    if kind < 0.06:
        return ""
    if kind < 0.09:
        return source.choice([" ", "\n", "\t", "   \n "])
    words = [source.choice(PIECES) for _ in range(source.randint(1, 12))]
    if source.random() < 0.06:
        words.insert(source.randrange(len(words) + 1), source.choice(SPECIAL_WORDS))
    joined = " ".join(words)
    return source.choice([joined, joined, joined, joined + "\n", " " + joined])


def conversation(source):
    messages = []
    if source.random() < 0.35:
        messages.append({"role": "system", "content": text(source)})
    for _ in range(source.choice([1, 1, 1, 2, 2, 3, 5])):
        messages.append({"role": "user", "content": text(source)})
        messages.append({"role": "assistant", "content": text(source)})
    if source.random() < 0.6:
        messages.pop()
    return messages


def chat_cases(model, conversations):
    tokenizer = tokenizer_of(model)
    cases = []
    for index, messages in enumerate(conversations):
        for generation in (False, True):
            # Every conversation in its natural form, every fourth in the other one too.
            natural = generation == (messages[-1]["role"] == "user")
            if not natural and index % 4:
                continue
            rendered = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation)
            ids = tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=generation)["input_ids"]
            assert ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]
            cases.append({"conversation": index, "add_generation_prompt": generation,
                          "text": rendered, "ids": ids})
    return {"model": model, "cases": cases}


def tokenize_cases(model, conversations):
    tokenizer = tokenizer_of(model)
    texts = [m["content"] for messages in conversations[:40] for m in messages]
    cases = []
    for content in list(dict.fromkeys(texts)) + PIECES + SPECIAL_WORDS:
        for special in (False, True):
            ids = tokenizer(content, add_special_tokens=special)["input_ids"]
            cases.append({"text": content, "add_special_tokens": special, "ids": ids,
                          "decoded": tokenizer.decode(ids),
                          "decoded_plain": tokenizer.decode(ids, skip_special_tokens=True)})
    return {"model": model, "cases": cases}


def make():
    source = random.Random(7)
    conversations = [conversation(source) for _ in range(COUNT)]
    # Kept as a file: this and `scripts/parity` read the same 200.
    write_json("conversations.json", conversations)
    conversations = read_json("conversations.json")
    write_json("chat.json", [chat_cases(model, conversations) for model in POLICIES])
    write_json("tokenize.json", [tokenize_cases(model, conversations) for model in POLICIES])
