"""The tiny models: random Llama weights, and small byte-level tokenizers trained on the text below."""

import json
import os
import shutil

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification,
                          PreTrainedTokenizerFast)

from golden_common import MODELS

VOCABULARY = 320
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# The same, but a text ends in the stop id itself.
CHATML_STOP = CHATML.replace("'<|im_end|>' + '\\n'", "'<|im_end|>'")
# With a BOS of the template's own, beside the one that the tokenizer would add.
HEADERS = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ '\\n' }}{{ message['content'] | trim }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{{ '\\n' }}{% endif %}"
)
CORPUS = [
    "The harbour lay still in the early light, and the small boats waited for the tide to turn.",
    "A good answer is short, kind and true; it says what it knows and stops.",
    "user assistant system: please write a list of the things that you can see from the window.",
    "Where does the river go when the summer is dry? It goes under the stones and comes back later.",
    "She counted the apples on the table, then she counted them again, and there was one more.",
    "Tell me a story about a fox, a lamp and a very long night in the mountains.",
]


def train_tokenizer(specials, digits):
    """Byte-level BPE; `digits` puts each digit alone first, as SmolLM2's does."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), split]) if digits else split
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in specials])
    tokenizer.train_from_iterator(CORPUS, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def randomise(model, seed):
    """Wider than transformers' 0.02, so that logits spread and greedy choices are clear."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name:
                tensor.copy_(1 + 0.1 * noise)
            elif "embed" in name or "lm_head" in name:
                tensor.copy_(0.4 * noise)
            else:
                tensor.copy_(noise * 1.2 / tensor.shape[-1] ** 0.5)
    return model.float()


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def chatml_tokenizer(template):
    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], digits=True),
        bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>",
        chat_template=template, clean_up_tokenization_spaces=False)


def tied():
    """As transformers 5 writes a folder."""
    folder = MODELS / "tiny-tied"
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, rms_norm_eps=1e-5,
        rope_theta=10000.0, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model = randomise(LlamaForCausalLM(config), 1)
    model.save_pretrained(folder)
    chatml_tokenizer(CHATML).save_pretrained(folder)
    stops = {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 2,
             "do_sample": True, "temperature": 0.2, "top_p": 0.5, "repetition_penalty": 1.3}
    (folder / "generation_config.json").write_text(json.dumps(stops, indent=2) + "\n")


def untied():
    """As transformers 4 wrote a folder: other keys, the template inside tokenizer_config.json, shards."""
    folder = MODELS / "tiny-untied"
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=1, head_dim=16, max_position_embeddings=1024,
        rms_norm_eps=1e-6, rope_theta=500000.0, tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=1, pad_token_id=3)
    randomise(LlamaForCausalLM(config), 2).save_pretrained(folder, max_shard_size="160KB")
    (folder / "generation_config.json").unlink()

    def old_form(value):
        value.pop("rope_parameters", None)
        value.pop("dtype", None)
        value.update(rope_theta=500000.0, rope_scaling=None, torch_dtype="float32")

    edit_json(folder / "config.json", old_form)
    tokenizer = train_tokenizer(["<s>", "</s>", "<unk>", "<pad>"], digits=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))

    def token(text):
        return {"content": text, "lstrip": False, "normalized": False, "rstrip": False,
                "single_word": False, "__type": "AddedToken"}

    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1024,
        "clean_up_tokenization_spaces": False, "chat_template": HEADERS,
        "bos_token": token("<s>"), "eos_token": token("</s>"), "unk_token": token("<unk>"),
        "pad_token": token("<pad>")}, indent=2) + "\n")


def reward():
    folder = MODELS / "tiny-reward"
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, rms_norm_eps=1e-5,
        rope_theta=10000.0, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        num_labels=1)
    randomise(LlamaForSequenceClassification(config), 3).save_pretrained(folder)
    chatml_tokenizer(CHATML).save_pretrained(folder)


def reward_stop():
    """The same weights by symlinks, as the Hugging Face cache lays out its folders."""
    folder = MODELS / "tiny-reward-stop"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        os.symlink(f"../tiny-reward/{name}", folder / name)
    (folder / "chat_template.jinja").write_text(CHATML_STOP)


def make():
    shutil.rmtree(MODELS, ignore_errors=True)
    MODELS.mkdir()
    for model in (tied, untied, reward, reward_stop):
        model()
