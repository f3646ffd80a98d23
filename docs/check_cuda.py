"""How far are our bfloat16 logits from an f32 run of transformers, beside transformers' own bfloat16 logits? On one GPU.

    mgsd model trace --model MODEL --chat chat.json --out trace.safetensors --device cuda --generate 16
    python docs/check_cuda.py MODEL trace.safetensors

Needs: pip install torch transformers safetensors
"""

import sys

import torch
from safetensors import safe_open
from transformers import Qwen3VLForConditionalGeneration

model_folder, trace_file = sys.argv[1:3]
with safe_open(trace_file, "pt") as file:
    trace = {name: file.get_tensor(name) for name in file.keys() if not name.startswith(("text.", "vision."))}
ids = trace["input_ids"].cuda()


def inputs(model, ids):
    image_token = model.config.image_token_id
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == image_token).long()}
    if "pixel_values" in trace:
        given["pixel_values"] = trace["pixel_values"].cuda().to(model.dtype)
        given["image_grid_thw"] = trace["image_grid_thw"].cuda()
    return given


logits = {"ours, bf16": trace["logits"].cuda().float()}
for name, dtype in [("transformers, f32", torch.float32), ("transformers, bf16", torch.bfloat16)]:
    model = Qwen3VLForConditionalGeneration.from_pretrained(model_folder, dtype=dtype, device_map="cuda").eval()
    with torch.no_grad():
        logits[name] = model(**inputs(model, ids), use_cache=False).logits.float()
        if dtype == torch.bfloat16 and "generated" in trace:
            count = trace["generated"].shape[1]
            out = model.generate(**inputs(model, ids), max_new_tokens=count, min_new_tokens=count, do_sample=False)
            theirs, ours = out[0, ids.shape[1] :].tolist(), trace["generated"][0].tolist()
            same = next((n for n, (a, b) in enumerate(zip(theirs, ours)) if a != b), count)
            print(f"greedy tokens: the first {same} of {count} are those of transformers in bf16")
    del model
    torch.cuda.empty_cache()
reference = logits["transformers, f32"]
print(f"logits {tuple(reference.shape)}, standard deviation {reference.std().item():.3f}")
for name in ("ours, bf16", "transformers, bf16"):
    difference = logits[name] - reference
    relative = (difference.norm() / reference.norm()).item()
    agree = (logits[name].argmax(-1) == reference.argmax(-1)).float().mean().item()
    print(f"{name}: relative distance {relative:.2e}, largest {difference.abs().max().item():.3f}, same likeliest token {agree:.3f}")
