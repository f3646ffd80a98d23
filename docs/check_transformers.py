"""Compares a trace of ours with transformers on the same model folder.

    mgsd model trace --model MODEL --chat chat.json --out trace.safetensors --generate 24
    python docs/check_transformers.py MODEL trace.safetensors chat.json

Needs: pip install torch transformers safetensors pillow
"""

import json
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

model_folder, trace_file, chat_file = sys.argv[1:4]
trace = load_file(trace_file)
model = Qwen3VLForConditionalGeneration.from_pretrained(
    model_folder, dtype=torch.float32, attn_implementation="eager"
).eval()
ids = trace["input_ids"]
image_token = model.config.image_token_id
inputs = {"input_ids": ids, "mm_token_type_ids": (ids == image_token).long(), "attention_mask": torch.ones_like(ids)}
for name in ("pixel_values", "image_grid_thw"):
    if name in trace:
        inputs[name] = trace[name]
with torch.no_grad():
    logits = model(**inputs, use_cache=False).logits
difference = (logits - trace["logits"]).abs().max().item()
print(f"logits: {tuple(logits.shape)}, largest {logits.abs().max().item():.3f}, largest difference {difference:.2e}")

tokenizer = AutoTokenizer.from_pretrained(model_folder)
text = tokenizer.apply_chat_template(json.load(open(chat_file)), add_generation_prompt=True, tokenize=False)
short = [i for n, i in enumerate(ids[0].tolist()) if i != image_token or ids[0][n - 1] != image_token]
print("token ids:", "equal" if tokenizer(text)["input_ids"] == short else "DIFFERENT")

if "generated" in trace:
    count = trace["generated"].shape[1]
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False)
    theirs, ours = out[0, ids.shape[1] :].tolist(), trace["generated"][0].tolist()
    same = next((n for n, (a, b) in enumerate(zip(theirs, ours)) if a != b), count)
    print(f"generated: the first {same} of {count} tokens are equal")
    print(repr(tokenizer.decode(ours)))
