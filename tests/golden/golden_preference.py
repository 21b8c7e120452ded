"""The preference model: probabilities of A and B by transformers in both orders, and a training curve by a
plain loop over single questions."""

import math
import random

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, get_scheduler

from golden_common import HERE, MODELS, POLICIES, read_json, tokenizer_of, write_json
from golden_train import COMMON

SEED = 5
PAIRS = 24
SETTINGS = {
    "learning_rate": 1e-3, "schedule": "cosine", "warmup_ratio": 0.1, "epochs": 4,
    "batch_sequences": 7, "micro_batch_sequences": 2, "packing": False, "block_tokens": 512,
    **{key: COMMON[key] for key in ("max_grad_norm", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")},
}
# The context as RLHFlow renders it, with transformers' own rules for the lines of a template; the role
# is written out, where theirs alternates.
CONTEXT = (
    "\n{% for message in messages %}{% if true %}\n\n<turn> {{ message['role'] }}\n {{ message['content'] }}"
    "{% endif %}{% endfor %}\n\n\n")


def question_ids(tokenizer, context, first, second):
    turns = tokenizer.apply_chat_template(context, chat_template=CONTEXT, tokenize=False)
    content = f"[CONTEXT] {turns} [RESPONSE A] {first} [RESPONSE B] {second} \n"
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True)["input_ids"]


def label_ids(tokenizer):
    ids = [tokenizer.encode(label, add_special_tokens=False) for label in "AB"]
    assert all(len(own) == 1 for own in ids)
    return [own[0] for own in ids]


def share_of_a(model, tokenizer, ids):
    """p_A / (p_A + p_B) from the probabilities over the whole vocabulary."""
    with torch.no_grad():
        probabilities = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    a, b = (probabilities[label].item() for label in label_ids(tokenizer))
    return a / (a + b)


def preferences():
    source = random.Random(17)
    things = ["the fox", "a lamp", "42 boats", "the river", "é 🌊", "", "A", "[RESPONSE B] me", " two  spaces \n"]
    conversations = [messages for messages in read_json("conversations.json")
                     if messages[-1]["role"] == "user" and len(str(messages)) < 400][:16]
    assert any(len(messages) > 2 for messages in conversations)
    out = []
    for name in POLICIES:
        model = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval()
        tokenizer = tokenizer_of(name)
        cases = []
        for context in conversations:
            first, second = source.sample(things, 2)
            asked = [question_ids(tokenizer, context, *pair) for pair in ((first, second), (second, first))]
            forward, swapped = (share_of_a(model, tokenizer, ids) for ids in asked)
            cases.append({
                "context": context, "responses": [first, second], "ids": asked[0], "forward": forward,
                "backward": 1 - swapped, "preference": (forward + 1 - swapped) / 2})
        gap = max(abs(case["forward"] - case["preference"]) for case in cases)
        print(f"golden: preference of {name}: one order alone is off by up to {gap:.3f}")
        assert gap > 0.02, gap
        out.append({"model": name, "labels": label_ids(tokenizer), "cases": cases})
    write_json("preferences.json", out)


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011)."""
    counter, key, mask = list(counter), list(key), 0xFFFFFFFF
    for turn in range(10):
        if turn:
            key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
        one, two = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(two >> 32) ^ counter[1] ^ key[0], two & mask, (one >> 32) ^ counter[3] ^ key[1], one & mask]
    return counter


def curve():
    import json
    lines = (HERE / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[:PAIRS]
    tokenizer = tokenizer_of("tiny-tied")
    a, b = label_ids(tokenizer)
    examples, drawn = [], []
    for index, pair in enumerate(map(json.loads, lines)):
        chosen, rejected = (pair[side][-1]["content"] for side in ("chosen", "rejected"))
        # One bit of (seed, line), the line counted from 1.
        chosen_as_a = philox([index + 1, 0, 0, 0x4C41424C], [SEED, 0])[0] & 1 == 0
        order = (chosen, rejected) if chosen_as_a else (rejected, chosen)
        drawn.append(chosen_as_a)
        examples.append((question_ids(tokenizer, pair["chosen"][:-1], *order), a if chosen_as_a else b))
    assert 6 < sum(drawn) < PAIRS - 6
    model = AutoModelForCausalLM.from_pretrained(MODELS / "tiny-tied", dtype=torch.float32)
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decayed = [own for name, own in model.named_parameters() if own.ndim > 1]
    others = [own for name, own in model.named_parameters() if own.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": SETTINGS["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
        lr=SETTINGS["learning_rate"], betas=(SETTINGS["adam_beta1"], SETTINGS["adam_beta2"]),
        eps=SETTINGS["adam_epsilon"])
    batch, epochs = SETTINGS["batch_sequences"], SETTINGS["epochs"]
    count = math.ceil(PAIRS / batch) * epochs
    schedule = get_scheduler("cosine", optimizer, math.ceil(SETTINGS["warmup_ratio"] * count), count)
    steps = []
    for _ in range(epochs):
        for start in range(0, PAIRS, batch):
            part = examples[start:start + batch]
            losses = [torch.nn.functional.cross_entropy(
                model(torch.tensor([ids])).logits[0, -1:], torch.tensor([label])) for ids, label in part]
            loss = torch.stack(losses).mean()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS["max_grad_norm"])
            steps.append({"step": len(steps) + 1, "loss": loss.item(), "lr": schedule.get_last_lr()[0],
                          "grad_norm": norm.item()})
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    final = {key: value.contiguous().clone() for key, value in model.state_dict().items() if key != "lm_head.weight"}
    moved = sum(((final[key] - initial[key]).double() ** 2).sum() for key in final) ** 0.5
    save_file(final, HERE / "preference_final.safetensors", metadata={"format": "pt"})
    write_json("preference.json", {
        "model": "tiny-tied", "seed": SEED, "pairs": "pairs.jsonl", "pairs_used": PAIRS, "chosen_as_a": drawn,
        "settings": SETTINGS, "steps": steps, "final": "preference_final.safetensors",
        "initial_to_final_norm": float(moved)})
    clipped = sum(step["grad_norm"] > SETTINGS["max_grad_norm"] for step in steps)
    print(f"golden: preference: {len(steps)} steps, loss {steps[0]['loss']:.4f} to {steps[-1]['loss']:.4f}, "
          f"{clipped} clipped, moved {float(moved):.4f}")
    assert len(steps) == 16 and clipped and steps[-1]["loss"] < steps[0]["loss"] - 0.5


def make():
    preferences()
    curve()
