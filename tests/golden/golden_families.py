"""One tiny random model of each family beside plain Llama, and its logits and greedy tokens.

In: nothing. Out: models/family-NAME/ (config.json and weights alone; no text is needed) and
families.json. Each takes the road that its family has of its own: biases, norms by head, windows
shorter than the text, layers without rotation, stretched frequencies.
"""

import torch
from transformers import (LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, MistralConfig,
                          MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM,
                          Qwen2ForSequenceClassification, Qwen3Config, Qwen3ForCausalLM,
                          SmolLM3Config, SmolLM3ForCausalLM)

from golden_common import MODELS, short, write_json
from golden_models import randomise

SIZES = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
             tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=32)


def families():
    yield "llama3", LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3))
    yield "llama-linear", LlamaForCausalLM(LlamaConfig(
        **SIZES, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)))
    yield "llama-bias", LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True))
    yield "mistral", MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6, head_dim=16))
    yield "qwen2", Qwen2ForCausalLM(Qwen2Config(**SIZES))
    yield "qwen2-window", Qwen2ForCausalLM(Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=2))
    yield "qwen3", Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16))
    yield "smollm3", SmolLM3ForCausalLM(SmolLM3Config(**SIZES, no_rope_layers=[1, 1, 1, 0]))
    yield "llama3-score", LlamaForSequenceClassification(LlamaConfig(
        **SIZES, rope_parameters=LLAMA3, num_labels=1))
    yield "qwen2-score", Qwen2ForSequenceClassification(Qwen2Config(**SIZES, num_labels=1))


def case(model, ids):
    rows = torch.tensor([ids])
    with torch.no_grad():
        logits = model(rows).logits[0]
    if not hasattr(model, "lm_head"):
        return {"ids": ids, "score": short(logits.item())}
    with torch.no_grad():
        # The window and the stretched frequencies are passed while writing, too.
        written = model.generate(rows, do_sample=False, max_new_tokens=20, eos_token_id=None,
                                 pad_token_id=0)
    return {"ids": ids, "logits": [[short(value) for value in row.tolist()] for row in logits], "greedy": written[0, len(ids):].tolist()}


def make():
    entries = []
    for seed, (name, model) in enumerate(families(), start=40):
        model = randomise(model, seed).eval()
        with torch.no_grad():
            for key, tensor in model.named_parameters():
                if key.endswith(".bias"):
                    tensor.copy_(0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)))
        folder = MODELS / f"family-{name}"
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        generator = torch.Generator().manual_seed(seed)
        cases = [case(model, torch.randint(3, 96, (length,), generator=generator).tolist())
                 for length in (1, 9, 40)]
        entries.append({"model": f"family-{name}", "cases": cases})
    write_json("families.json", entries)
