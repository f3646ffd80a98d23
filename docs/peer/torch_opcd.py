"""One step of on-policy distillation with transformers + PEFT on one GPU, random Qwen3-VL 4B weights: the work of
`mgsd bench gpu --what opcd`.

32 boards: prompts of 512 tokens with a 256 x 256 picture each, one rollout of 128 sampled tokens each (`generate`); the
frozen base scores the rollouts after text prompts of 512 tokens; the student's own log-probabilities are computed once
more, as trainers with a separate sampler must; then forward, exact reverse KL over the vocabulary, backward, AdamW on a
LoRA of rank 8, in micro-batches of 8. Prints seconds of each part and of all.

    python docs/peer/torch_opcd.py
"""
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

DEVICE, BOARDS, PROMPT, NEW, MICRO = "cuda", 32, 512, 128, 8
START, END, IMAGE, VIDEO = 151652, 151653, 151655, 151656
torch.manual_seed(0)
config = Qwen3VLConfig(
    text_config=dict(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, vocab_size=151936, max_position_embeddings=262144, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=5e6, mrope_section=[24, 20, 20], mrope_interleaved=True)),
    vision_config=dict(
        depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16, patch_size=16, spatial_merge_size=2,
        temporal_patch_size=2, out_hidden_size=2560, num_position_embeddings=2304, deepstack_visual_indexes=[5, 11, 17]),
    image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
    tie_word_embeddings=True)
config._attn_implementation = "sdpa"
torch.set_default_dtype(torch.bfloat16)
with torch.device(DEVICE):
    model = Qwen3VLForConditionalGeneration(config)
torch.set_default_dtype(torch.float32)
linears = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=linears))
optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

student = torch.randint(1000, 100000, (BOARDS, PROMPT), device=DEVICE)
student[:, 10], student[:, 11:75], student[:, 75] = START, IMAGE, END
teacher = torch.randint(1000, 100000, (BOARDS, PROMPT), device=DEVICE)
pixels = torch.randn(BOARDS, 256, 3 * 2 * 16 * 16, device=DEVICE, dtype=torch.bfloat16)


def pictures(rows):
    grid = torch.tensor([[1, 16, 16]] * len(range(*rows.indices(BOARDS))), device=DEVICE)
    return dict(pixel_values=pixels[rows].reshape(-1, pixels.shape[-1]), image_grid_thw=grid)


def kinds(ids):
    return dict(mm_token_type_ids=(ids == IMAGE).long())


def logits(prompts, answers, **extra):
    """Logits that predict the answers: [rows, NEW, vocab]."""
    ids = torch.cat([prompts, answers], 1)
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=NEW + 1,
                **kinds(ids), **extra)
    return out.logits[:, :-1]


def step():
    times = [time.perf_counter()]

    def lap():
        torch.cuda.synchronize()
        times.append(time.perf_counter())

    everything = slice(0, BOARDS)
    with torch.no_grad():
        whole = model.generate(input_ids=student, attention_mask=torch.ones_like(student), max_new_tokens=NEW,
                               min_new_tokens=NEW, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                               # Random weights would write them too, and scoring then look for a picture.
                               suppress_tokens=[START, END, IMAGE, VIDEO],
                               **kinds(student), **pictures(everything))
    answers = whole[:, PROMPT:]
    lap()
    with torch.no_grad():
        for first in range(0, BOARDS, MICRO):
            rows = slice(first, first + MICRO)
            torch.log_softmax(logits(student[rows], answers[rows], **pictures(rows)).float(), -1).gather(
                -1, answers[rows, :, None])
    lap()
    scoring = 0.0
    for first in range(0, BOARDS, MICRO):
        rows = slice(first, first + MICRO)
        began = time.perf_counter()
        with torch.no_grad(), model.disable_adapter():
            theirs = torch.log_softmax(logits(teacher[rows], answers[rows]).float(), -1)
        torch.cuda.synchronize()
        scoring += time.perf_counter() - began
        ours = torch.log_softmax(logits(student[rows], answers[rows], **pictures(rows)).float(), -1)
        loss = (ours.exp() * (ours - theirs)).sum() / (BOARDS * NEW)
        loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    lap()
    rollout, old, rest = (later - earlier for earlier, later in zip(times, times[1:]))
    return dict(rollout=rollout, old_log_probs=old, teacher=scoring, update=rest - scoring, all=times[-1] - times[0])


step()
runs = sorted((step() for _ in range(3)), key=lambda run: run["all"])
for name, seconds in runs[1].items():
    print(f"torch.4b.opcd.{name} {seconds * 1e3:.1f} ms", flush=True)
print(f"torch.4b.opcd.peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)
