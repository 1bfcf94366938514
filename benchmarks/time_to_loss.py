"""Quality per time: bigmodel in a third of nanoGPT's time, on Shakespeare's characters.

    python benchmarks/time_to_loss.py --nanogpt PATH --text input.txt

nanoGPT trains with the settings that its README gives for a CPU (4 layers, 128 wide, context 64,
2,000 updates of 12 rows); its time is that of the process, from start to end. bigmodel then gets
.33 of that time (its last checkpoint is written after that: a third in all), and no more flags than
the size and context. Both are scored on the whole validation part (the last tenth of the text)
afterwards, in nats per character: nanoGPT's checkpoint in windows of 64, bigmodel's by
`bigmodel evaluate --split val`.
"""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rounds import Contestant, alternate, machine, table

CPU = {  # README.md, "I only have a macbook"
    "device": "cpu", "compile": False, "eval_iters": 20, "log_interval": 100, "block_size": 64,
    "batch_size": 12, "n_layer": 4, "n_head": 4, "n_embd": 128, "max_iters": 2000,
    "lr_decay_iters": 2000, "dropout": 0.0,
}  # fmt: skip
SCORE = """
import sys
import numpy as np, torch
from model import GPT, GPTConfig
saved = torch.load(sys.argv[1], weights_only=False)
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict(saved["model"])
model.eval()
tokens = torch.from_numpy(np.fromfile(sys.argv[2], np.uint16).astype(np.int64))
size = model.config.block_size
rows = (len(tokens) - 1) // size
inputs, targets = tokens[: rows * size].view(-1, size), tokens[1 : rows * size + 1].view(-1, size)
with torch.no_grad():
    losses = [model(x, y)[1].item() * len(x)
              for x, y in zip(inputs.split(128), targets.split(128))]
print("LOSS", sum(losses) / rows)
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--nanogpt", metavar="PATH", required=True)
    options.add_argument("--text", metavar="FILE", required=True, help="tiny Shakespeare")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--share", type=float, default=0.33, help="of nanoGPT's time")
    options.add_argument(
        "rest",
        nargs="*",
        default=["--size", "nano", "--context", "64"],
        help="options of bigmodel train, after -- (--size nano --context 64)",
    )
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        text = Path(chosen.text).read_text("utf-8")
        cut = int(len(text) * 0.9)
        peer = root / "nanogpt"
        shutil.copytree(chosen.nanogpt, peer, ignore=shutil.ignore_patterns(".git", "data"))
        data = peer / "data" / "shakespeare_char"
        data.mkdir(parents=True)
        letters = {char: i for i, char in enumerate(sorted(set(text)))}
        for part, piece in (("train", text[:cut]), ("val", text[cut:])):
            (root / f"{part}.txt").write_text(piece, "utf-8")
            np.array([letters[c] for c in piece], np.uint16).tofile(data / f"{part}.bin")
        with (data / "meta.pkl").open("wb") as file:
            pickle.dump({"vocab_size": len(letters), "stoi": letters}, file)
        work = root / "w"
        bigmodel = [sys.executable, "-m", "bigmodel_cli"]
        subprocess.run([*bigmodel, "prepare", root / "train.txt", "--val", root / "val.txt",
                        "--test", "0", "--tokenizer", "chars", "-w", work, "--quiet"],
                       check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        flags = [f"--{k}={v}" for k, v in CPU.items()]
        theirs, ours, their_loss, our_loss = [], [], [], []
        for seed in range(chosen.seeds):
            # nanoGPT has one seed, 1337, in its source
            source = (peer / "train.py").read_text().replace("1337 +", f"{1337 + seed} +")
            (peer / f"train{seed}.py").write_text(source)
            script = [sys.executable, f"train{seed}.py", "config/train_shakespeare_char.py"]
            one = Contestant("nanoGPT", [*script, *flags], cwd=peer)
            alternate([one], 1)
            theirs.append(one.wall[0])
            checkpoint = peer / "out-shakespeare-char" / "ckpt.pt"
            shown = subprocess.check_output(
                [sys.executable, "-c", SCORE, checkpoint, data / "val.bin"], cwd=peer, text=True
            )
            their_loss.append(float(shown.split()[-1]))
            minutes = one.wall[0] * chosen.share / 60
            run = f"seed{seed}"
            command = [*bigmodel, "train", "-w", str(work), "--run", run, "--seed", str(seed)]
            length = ["--minutes", f"{minutes:.4f}", "--quiet", *chosen.rest]
            two = Contestant("bigmodel", [*command, *length])
            alternate([two], 1)
            ours.append(two.wall[0])
            shown = subprocess.check_output(
                [*bigmodel, "evaluate", "-w", work, "--run", run, "--split", "val", "--json"],
                text=True,
                stderr=subprocess.DEVNULL,
            )
            our_loss.append(json.loads(shown)["metrics"]["loss"]["value"])
            print(
                f"seed {seed}: nanoGPT {their_loss[-1]:.4f} in {theirs[-1]:.1f} s, bigmodel "
                f"{our_loss[-1]:.4f} in {ours[-1]:.1f} s",
                file=sys.stderr,
            )
    print(f"{chosen.seeds} seeds, {machine()}; nats per character of the whole validation part")
    table([
        ["", "loss, mean", "loss, each", "seconds, mean", "share of nanoGPT's"],
        *([who, f"{statistics.mean(loss):.4f}", " ".join(f"{x:.4f}" for x in loss),
           f"{statistics.mean(took):.1f}", f"{sum(took) / sum(theirs):.2f}"]
          for who, loss, took in (("nanoGPT, CPU settings", their_loss, theirs),
                                  ("bigmodel", our_loss, ours))),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
