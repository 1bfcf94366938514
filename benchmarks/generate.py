"""Generation speed: bigmodel's decoder beside transformers.generate, on the same bundle.

    python benchmarks/generate.py                # 10.7 M weights
    python benchmarks/generate.py --shape 42m

Each prompt has 32 tokens and gets 128 more, each the most likely one, never stopping early; with
all prompts of one length (`batch`), and for bigmodel also of unlike lengths (`uneven`). Tokens per
second are those of the whole call, the prompts' reading included. fp32, bf16, and int8 weights.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from rounds import Contestant, alternate, machine, table
from train import SHAPES, bench

PROMPT, NEW = 32, 128
BATCHES = (1, 8, 32)

START = """
import json, os, sys, time
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as bigmodel's commands do
import torch
folder, precision, prompt, new = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
batches = [int(x) for x in sys.argv[5].split(",")]
torch.manual_seed(0)
rows = torch.randint(300, 340, (max(batches), prompt)).tolist()
found = {}
def measure(name, size, call):
    call(rows[:size], 8)
    began = time.perf_counter()
    call(rows[:size], new)
    found[name] = size * new / (time.perf_counter() - began)
"""
OURS = (
    START
    + """
from pathlib import Path
from bigmodel_cli.deploy.predict import Predictor
from bigmodel_cli.models.generate import Decoder
from bigmodel_cli.models.sampling import Sampling
model = Predictor(Path(folder), "cpu", 0, precision).model
def write(prompts, count):
    decoder = Decoder(model, prompts, [Sampling()] * len(prompts))
    for _ in range(count):
        decoder.step()
for size in batches:
    measure(f"batch {size}", size, write)
uneven = max(batches)
measure(f"uneven {uneven}", uneven,
        lambda p, n: write([row[: prompt - i % prompt // 2] for i, row in enumerate(p)], n))
print("BENCH " + json.dumps(found))
"""
)
THEIRS = (
    START
    + """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(folder, dtype=precision).eval()
model.generation_config.eos_token_id = None
def write(prompts, count):
    ids = torch.tensor(prompts)
    model.generate(ids, attention_mask=ids * 0 + 1, max_new_tokens=count, do_sample=False)
for size in batches:
    measure(f"batch {size}", size, write)
print("BENCH " + json.dumps(found))
"""
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--shape", choices=SHAPES, default="10m")
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    width, layers, heads, hidden, context, _, tokenizer, pattern = SHAPES[chosen.shape]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name) / "w"
        bigmodel = [sys.executable, "-m", "bigmodel_cli"]
        source = f"{sysconfig.get_path('stdlib')}/{pattern}"
        quiet = {"check": True, "stdout": subprocess.DEVNULL}
        subprocess.run([*bigmodel, "prepare", source, "-w", work, *tokenizer, "--quiet"], **quiet)
        shape = {
            "width": width,
            "layers": layers,
            "heads": heads,
            "hidden": hidden,
            "context": context,
            "batch-size": 4,
            "steps": 8,
        }
        flags = [word for key, value in shape.items() for word in (f"--{key}", str(value))]
        subprocess.run([*bigmodel, "train", "-w", work, *flags, "--quiet"], **quiet)
        subprocess.run([*bigmodel, "deploy", "-w", work, "--quiet"], **quiet)
        bundle = work / "runs" / "default" / "bundle"
        numbers = [str(PROMPT), str(NEW), ",".join(map(str, BATCHES))]
        version = importlib.metadata.version("transformers")
        contestants = [
            Contestant(f"{who}, {shown}", [sys.executable, "-c", code, str(bundle), how, *numbers])
            for who, code, precisions in (
                ("bigmodel", OURS, {"fp32": "fp32", "bf16": "bf16", "int8": "int8"}),
                (f"transformers {version}", THEIRS, {"fp32": "float32", "bf16": "bfloat16"}),
            )
            for shown, how in precisions.items()
        ]
        alternate(contestants, chosen.rounds)
        sizes = json.loads((bundle / "config.json").read_bytes())
    found = {one.name: [bench(text) for text in one.output] for one in contestants}
    columns = [f"batch {size}" for size in BATCHES] + [f"uneven {max(BATCHES)}"]
    rows = [["tokens/s", *columns]]
    medians: dict[tuple[str, str], float] = {}
    for who, results in found.items():
        cells = []
        for column in columns:
            values = [result[column] for result in results if column in result]
            if values:
                medians[who, column] = statistics.median(values)
            cells.append(
                f"{medians[who, column]:,.0f} ({min(values):,.0f}–{max(values):,.0f})"
                if values
                else ""
            )
        rows.append([who, *cells])
    for shown in ("fp32", "bf16"):
        ratios = [
            medians[f"bigmodel, {shown}", c] / medians[f"transformers {version}, {shown}", c]
            for c in columns[:-1]
        ]
        rows.append([f"bigmodel is, {shown}", *(f"{ratio:.2f}×" for ratio in ratios), ""])
    print(
        f"{layers} × {width}, vocabulary {sizes['vocab_size']:,}, {PROMPT} + {NEW} tokens, "
        f"{chosen.rounds} rounds, {machine()}, "
        f"torch {importlib.metadata.version('torch')}"
    )
    table(rows)


if __name__ == "__main__":
    main()
