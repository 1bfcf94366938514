"""Training speed: bigmodel beside nanoGPT, transformers' Trainer and litgpt on the same work.

    python benchmarks/train.py --nanogpt PATH --peers PYTHON               # 10.7 M weights
    python benchmarks/train.py --nanogpt PATH --peers PYTHON --shape 42m
    python benchmarks/train.py --nanogpt PATH --shape 124m --device cuda

PATH is a checkout of karpathy/nanoGPT, PYTHON one that has litgpt, transformers and accelerate.

The same tokens, layers, width, heads, context and rows per update, no dropout, the inner weights
within 2 %: GPT-2's form in nanoGPT (fp32, as it runs on a CPU; compiled bf16 on a GPU), Llama's in
the Trainer and litgpt (bf16, CPU only), bigmodel's default (bf16 where the hardware has it, Muon).
Tokens per second are those of the median update after the first two; what is compiled says so, and
how long its start took.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rounds import Contestant, alternate, machine, table

from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.workdir import Workdir

# width, layers, heads, hidden of a gated block, context, rows per update, tokenizer, source
SHAPES = {
    "10m": (384, 6, 6, 1024, 256, 32, ("--tokenizer", "chars"), "*.py"),
    "42m": (512, 12, 8, 1344, 256, 16, ("--vocab-size", "8192"), "*.py"),
    "124m": (768, 12, 12, 2048, 1024, 64, ("--vocab-size", "50304"), "**/*.py"),
}
ACCUMULATED = 2  # nanoGPT's micro-batches in an update on a GPU

TRAINER = """
import json, sys, time
import numpy as np, torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

width, layers, heads, hidden, rows, context, vocabulary, steps = map(int, sys.argv[1:9])
tokens = np.memmap(sys.argv[9], np.uint16, "r")
model = LlamaForCausalLM(LlamaConfig(
    hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, vocab_size=vocabulary,
    intermediate_size=hidden, max_position_embeddings=context, tie_word_embeddings=True,
    use_cache=False))

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return rows * steps
    def __getitem__(self, index):
        start = index * context % (len(tokens) - context - 1)
        ids = torch.from_numpy(tokens[start : start + context].astype(np.int64))
        return {"input_ids": ids, "labels": ids}

class Times(TrainerCallback):
    seen = []
    def on_step_begin(self, *_, **__):
        self.began = time.perf_counter()
    def on_step_end(self, *_, **__):
        self.seen.append(time.perf_counter() - self.began)

arguments = TrainingArguments(
    output_dir=sys.argv[10], per_device_train_batch_size=rows, max_steps=steps, bf16=True,
    use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True)
Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Times()]).train()
inner = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)
print("BENCH " + json.dumps({"inner": inner, "seconds": Times.seen}))
"""
LITGPT = """
import json, sys, time
import lightning as L, numpy as np, torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import chunked_cross_entropy

width, layers, heads, hidden, rows, context, vocabulary, steps = map(int, sys.argv[1:9])
tokens = np.memmap(sys.argv[9], np.uint16, "r")
config = Config(
    name="bench", block_size=context, n_layer=layers, n_head=heads, n_embd=width,
    intermediate_size=hidden, padded_vocab_size=vocabulary, vocab_size=vocabulary, bias=False,
    rotary_percentage=1.0, parallel_residual=False, norm_class_name="RMSNorm",
    mlp_class_name="LLaMAMLP")
# as litgpt's pretrain.py does it: Fabric, bf16-mixed, AdamW, clipping, chunked cross entropy
began = time.perf_counter()
fabric = L.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
model = fabric.setup(GPT(config))
optimizer = fabric.setup_optimizers(
    torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1, betas=(0.9, 0.95)))
seconds = []
for step in range(steps):
    began = time.perf_counter()
    starts = np.arange(rows) * context + step
    block = np.stack([tokens[s : s + context + 1] for s in starts])
    block = torch.from_numpy(block.astype(np.int64))
    logits = model(block[:, :-1].contiguous())
    loss = chunked_cross_entropy(logits, block[:, 1:].contiguous())
    fabric.backward(loss)
    fabric.clip_gradients(model, optimizer, max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()
    loss.item()
    seconds.append(time.perf_counter() - began)
inner = sum(p.numel() for n, p in model.named_parameters() if "wte" not in n and "lm_head" not in n)
print("BENCH " + json.dumps({"inner": inner, "seconds": seconds}))
"""
COMPILED = "torch.compile(GPT(config))"
PEAK = """
import json, sys, time, torch
found, device = {}, sys.argv[1]
size = 2048 if device == "cpu" else 8192
for dtype in (torch.bfloat16, torch.float32):
    a = torch.randn(size, size, dtype=dtype, device=device)
    times = []
    for _ in range(8):
        began = time.perf_counter(); (a @ a)[0, 0].item(); times.append(time.perf_counter() - began)
    found[str(dtype)] = 2 * size**3 / min(times)
print("BENCH " + json.dumps(found))
"""


def bench(output: str) -> dict[str, Any]:
    return dict(json.loads(output.rsplit("BENCH ", 1)[1].splitlines()[0]))


def device(kind: str) -> str:
    """What computed."""
    if kind == "cpu":
        return machine()
    show = "import torch; print(torch.cuda.get_device_name())"
    return subprocess.check_output([sys.executable, "-c", show], text=True).strip()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--shape", choices=SHAPES, default="10m")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--nanogpt", metavar="PATH", help="a checkout of karpathy/nanoGPT")
    options.add_argument("--peers", metavar="PYTHON", help="has litgpt, transformers, accelerate")
    chosen = options.parse_args()
    width, layers, heads, hidden, context, rows, tokenizer, pattern = SHAPES[chosen.shape]
    steps, cuda = chosen.steps, chosen.device == "cuda"
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        work, binary = root / "w", root / "train.bin"
        bigmodel = [sys.executable, "-m", "bigmodel_cli"]
        source = f"{sysconfig.get_path('stdlib')}/{pattern}"
        subprocess.run(
            [*bigmodel, "prepare", source, "-w", work, *tokenizer, "--quiet"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        data = Workdir(work).read_data()
        split = Split(work / "data", data["splits"]["train"]["shards"])
        tokens = np.concatenate([split.values("tokens", i, i + 1) for i in range(len(split))])
        tokens.astype(np.uint16).tofile(binary)
        config = json.loads((work / "data" / "preprocessor" / "tokenizer.json").read_bytes())
        ids = [*config["model"]["vocab"].values(), *(t["id"] for t in config["added_tokens"])]
        vocabulary = max(ids) + 1
        shape = [width, layers, heads, hidden, rows, context, vocabulary, steps]
        run = work / "runs" / "default"
        ours = [*bigmodel, "train", "-w", work, "--width", width, "--layers", layers, "--heads",
                heads, "--hidden", hidden, "--context", context, "--batch-size", rows,
                "--steps", steps, "--checkpoint-every", 10**6, "--device", chosen.device,
                "--quiet"]  # fmt: skip
        contestants = [
            Contestant(name, [*map(str, ours), "--compile", how], lambda: shutil.rmtree(run, True))
            for name, how in (("bigmodel", "off"), ("bigmodel, compiled", "on"))
        ]
        if chosen.peers and not cuda:
            for package, what, script in (
                ("transformers", "Trainer, Llama, bf16", TRAINER),
                ("litgpt", "bf16-mixed", LITGPT),
                ("litgpt", "bf16-mixed, compiled", LITGPT.replace("GPT(config)", COMPILED)),
            ):
                show = f"import importlib.metadata as m; print(m.version('{package}'))"
                version = subprocess.check_output([chosen.peers, "-c", show], text=True).strip()
                command = [
                    chosen.peers,
                    "-c",
                    script,
                    *map(str, shape),
                    str(binary),
                    str(root / "t"),
                ]
                contestants.append(Contestant(f"{package} {version}, {what}", command))
        if chosen.nanogpt:
            peer = root / "nanogpt"
            peer.mkdir()
            for item in Path(chosen.nanogpt).glob("*.py"):
                shutil.copy(item, peer)
            (peer / "data" / "bench").mkdir(parents=True)
            for part in ("train", "val"):
                os.link(binary, peer / "data" / "bench" / f"{part}.bin")
            with (peer / "data" / "bench" / "meta.pkl").open("wb") as file:
                pickle.dump({"vocab_size": vocabulary}, file)
            parts = ACCUMULATED if cuda else 1
            flags = {
                "device": chosen.device, "compile": cuda, "dataset": "bench",
                "eval_interval": 10**6, "eval_iters": 1, "log_interval": 1, "block_size": context,
                "batch_size": rows // parts, "n_layer": layers, "n_head": heads, "n_embd": width,
                "dropout": 0.0, "gradient_accumulation_steps": parts, "max_iters": steps - 1,
            }  # fmt: skip
            contestants.append(
                Contestant(
                    "nanoGPT, compiled (bf16)" if cuda else "nanoGPT as it ships for a CPU (fp32)",
                    [sys.executable, "train.py", *(f"--{k}={v}" for k, v in flags.items())],
                    cwd=peer,
                )
            )
        starts: dict[str, float] = {}
        found: dict[str, list[float]] = {one.name: [] for one in contestants}
        inner: dict[str, float] = {}
        peaks: list[dict[str, float]] = []
        for _ in range(chosen.rounds):
            done = subprocess.run(
                [sys.executable, "-c", PEAK, chosen.device],
                capture_output=True,
                text=True,
                check=True,
            )
            peaks.append(bench(done.stdout))
            for one in contestants:
                alternate([one], 1)
                text = one.output[-1]
                if "bigmodel" in one.name:
                    lines = [json.loads(x) for x in (run / "log.jsonl").read_text().splitlines()]
                    ends = [x["seconds"] for x in lines if "gradient_norm" in x]
                    seconds = [b - a for a, b in itertools.pairwise([0, *ends])]
                    inner[one.name] = layers * (4 * width**2 + 3 * width * hidden)
                elif "nanoGPT" in one.name:
                    seconds = [float(x) / 1000 for x in re.findall(r"time ([\d.]+)ms", text)]
                    inner[one.name] = layers * 12 * width**2
                else:
                    result = bench(text)
                    seconds, inner[one.name] = result["seconds"], result["inner"]
                starts.setdefault(one.name, seconds[0])  # the first time: no compiler's cache
                found[one.name].append(rows * context / statistics.median(seconds[2:]))
    best = statistics.median(found["bigmodel"])
    print(
        f"{layers} × {width}, vocabulary {vocabulary:,}, {rows} × {context} tokens an update, "
        f"{chosen.rounds} rounds of {steps} updates, {device(chosen.device)}, "
        f"torch {importlib.metadata.version('torch')}"
    )
    fused = statistics.median(found["bigmodel, compiled"])
    header = ["", "tokens/s", "inner weights", "first update", "bigmodel is", "compiled is"]
    printed = [header]
    for one in contestants:
        speeds = found[one.name]
        speed = statistics.median(speeds)
        printed.append(
            [
                one.name,
                f"{speed:,.0f} ({min(speeds):,.0f}–{max(speeds):,.0f})",
                f"{inner[one.name] / 1e6:.2f} M",
                f"{starts[one.name]:.0f} s",
                f"{best / speed:.2f}×",
                f"{fused / speed:.2f}×",
            ]
        )
    table(printed)
    flops = 6 * (inner["bigmodel"] + vocabulary * width) + 12 * layers * width * context / 2
    peak = statistics.median(max(p.values()) for p in peaks)
    print(
        f"peak of a matrix product: {peak / 1e9:,.0f} GFLOP/s; bigmodel reaches "
        f"{best * flops / peak:.0%} of it, compiled {fused * flops / peak:.0%}"
    )


if __name__ == "__main__":
    main()
