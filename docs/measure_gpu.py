"""The table of h200.md in one call: our binary and PyTorch's programs in turn on one GPU, each in a process of its own.

    python docs/measure_gpu.py --mgsd target/release/mgsd --peers PEERS [--rounds 2] [--seconds 540] [--parts stack,logp,...]

PEERS is the folder with torch_stack.py and torch_qwen3vl.py; the distillation step of PyTorch lies beside this file. A round
of a part begins only if it would end within --seconds, judged by the round before, and a program that is still running then
is stopped; what it has printed counts. Prints every figure as it comes and the table as Markdown last, medians over the
rounds. Needs, for the peers: pip install torch transformers peft
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# A row: what it is, our figure, PyTorch's, what is wanted of their ratio. Of milliseconds the smaller is the better.
PARTS = {
    "stack": [
        ("4 layers, 4 x 1024, all weights", "stack4.full", "torch stack4 full torch.compile", 1.2),
        ("4 layers, LoRA of rank 8", "stack4.lora8", "torch stack4 lora8 torch.compile", 1.2),
    ],
    "logp": [("4B log-probabilities, 8 x 768", "4b.logp.b8x768", "torch.4b.logp.b8x768", 2.0)],
    "gen": [
        ("4B generation, 32 x (512 + 128)", "4b.generate.b32.p512.n128", "torch.4b.generate.b32.p512.n128", 12.0),
        ("a decoding step of it", "4b.generate.step", None, None),
    ],
    "sft": [
        ("4B LoRA step, 8 x 512", "4b.sft_lora.b8x512", "torch.4b.sft_lora.b8x512.nockpt", 2.5),
        ("its memory", "4b.sft_lora.memory", "torch.4b.sft_lora.b8x512.nockpt peak", None),
    ],
    "full": [
        ("4B full step, 8 x 768", "4b.full.b8x768", "torch.4b.full_ft.b8x768", 1.5),
        ("its memory", "4b.full.memory", "torch.4b.full_ft.b8x768 peak", None),
    ],
    "opcd": [("4B OPCD step, 32 boards", "4b.opcd.b32", "torch.4b.opcd.all", 5.0)],
}


def figures(text):
    """Name -> (value, unit) of lines `name value unit`; a line `peak` belongs to the figure in front of it."""
    found, last = {}, ""
    for line in text.splitlines():
        if compiled := re.match(r"(torch stack4 .*) tok/s=(\d+)", line):
            found[compiled[1]] = (float(compiled[2]), "tokens/s")
        elif plain := re.match(r"\s*(\S+) ([\d.e+]+) (\S+)$", line):
            name = f"{last} peak" if plain[1] == "peak" else plain[1]
            found[name] = (float(plain[2]), plain[3])
            last = name
    return found


def commands(args, part):
    peer = {
        "stack": [args.peers / "torch_stack.py"],
        "opcd": [Path(__file__).parent / "peer" / "torch_opcd.py"],
    }.get(part, [args.peers / "torch_qwen3vl.py", "4b", part])
    return {"ours": [args.mgsd, "bench", "gpu", "--what", part], "PyTorch": [sys.executable, *peer]}


def run(command, seconds):
    """What a program prints, and how it failed, if it did."""
    if seconds <= 0:
        return "", "was not begun: no time"
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as complaints:
        try:
            code = subprocess.run(command, stdout=printed, stderr=complaints, timeout=seconds).returncode
            problem = f"ended with {code}" if code != 0 else ""
        except subprocess.TimeoutExpired:
            problem = f"was stopped after {seconds:.0f} s"
        printed.seek(0)
        complaints.seek(0)
        if problem and (said := complaints.read()[-800:].strip()):
            problem += f":\n{said}"
        return printed.read(), problem


def measure(args, started):
    """Part -> who -> figure -> its values, and units."""
    values, units, costs = {}, {}, {}
    for round_number in range(1, args.rounds + 1):
        for part in args.parts:
            begun = time.monotonic()
            if begun - started + costs.get(part, 0.0) > args.seconds:
                print(f"[{begun - started:.0f} s] no time for round {round_number} of {part}", flush=True)
                continue
            for who, command in commands(args, part).items():
                now = time.monotonic() - started
                print(f"[{now:.0f} s] {part}, {who}", flush=True)
                printed, problem = run([str(word) for word in command], args.seconds - now)
                got = figures(printed)
                if problem or not got:
                    print(f"{' '.join(map(str, command))} {problem or 'printed no figure'}", flush=True)
                for name, (value, unit) in got.items():
                    print(f"  {name} {value:g} {unit}", flush=True)
                    values.setdefault(name, []).append(value)
                    units[name] = unit
            costs[part] = time.monotonic() - begun
    return values, units


def number(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def table(values, units, parts):
    lines = ["| work | ours | PyTorch | ratio | wanted |", "|---|---|---|---|---|"]
    for part in parts:
        for work, ours, theirs, wanted in PARTS[part]:
            if ours not in values:
                continue
            shown, middle = [], []
            for name in (ours, theirs):
                if name not in values:
                    shown.append("")
                    continue
                middle.append(statistics.median(values[name]))
                each = f" ({', '.join(map(number, values[name]))})" if len(values[name]) > 1 else ""
                shown.append(f"{number(middle[-1])} {units[name]}{each}")
            ratio = ""
            if len(middle) == 2:
                faster = middle[1] / middle[0] if units[ours] == "ms" else middle[0] / middle[1]
                ratio = f"{faster:.2f}"
            lines.append(f"| {work} | {shown[0]} | {shown[1]} | {ratio} | {wanted or ''} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mgsd", type=Path, required=True)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"unknown parts {unknown}; known are {list(PARTS)}")
    if not args.mgsd.is_file() or not args.peers.is_dir():
        parser.error(f"--mgsd {args.mgsd} must be our binary and --peers {args.peers} the folder of PyTorch's programs")
    values, units = measure(args, time.monotonic())
    print(table(values, units, args.parts))


if __name__ == "__main__":
    main()
