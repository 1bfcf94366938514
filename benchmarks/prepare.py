"""From .jsonl to verified shards: bigmodel against the datasets.map recipe and litgpt.

    python benchmarks/prepare.py
    python benchmarks/prepare.py --litgpt /path/to/a/python/that/has/litgpt

The corpus is documentation and source code that this Python has installed; all contestants use
one tokenizer, which is trained beforehand. bigmodel cleans, drops duplicates, splits, hashes and
keeps its ledger meanwhile; the others only tokenize and write.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from rounds import Contestant, alternate, machine, spread, table

# What people do with datasets (nanoGPT's data/openwebtext/prepare.py, batched): map, then one file.
RECIPE = """
import sys
import numpy as np
from datasets import load_dataset
from tokenizers import Tokenizer

source, codec, out = sys.argv[1:]
tokenizer = Tokenizer.from_file(codec)
end = tokenizer.token_to_id("<|endoftext|>")

def tokenize(batch):
    encoded = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
    ids = [[*item.ids, end] for item in encoded]
    return {"ids": ids, "len": [len(x) for x in ids]}

data = load_dataset("json", data_files=source, split="train").train_test_split(0.05, seed=1)
data = data.map(tokenize, batched=True, remove_columns=data["train"].column_names, num_proc=2)
for name, part in data.items():
    total = int(np.sum(part["len"], dtype=np.uint64))
    file = np.memmap(f"{out}/{name}.bin", dtype=np.uint16, mode="w+", shape=(total,))
    place = 0
    shards = min(64, len(part))
    for index in range(shards):
        batch = part.shard(shards, index, contiguous=True).with_format("numpy")
        ids = np.concatenate(batch["ids"])
        file[place : place + len(ids)] = ids
        place += len(ids)
    file.flush()
"""
LITGPT = """
import sys
from pathlib import Path
from litgpt.data import TextFiles
from litgpt.tokenizer import Tokenizer

if __name__ == "__main__":
    data = TextFiles(Path(sys.argv[1]))
    data.connect(Tokenizer(sys.argv[2]), 1, 256)
    data.prepare_data()
"""


def corpus(path: Path, folder: Path, megabytes: float) -> int:
    """Source and documentation as JSON lines, and as text files for litgpt. Gives the bytes."""
    roots = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")]
    names = sorted({p for root in roots for suffix in ("py", "rst", "md", "txt")
                    for p in Path(root).rglob(f"*.{suffix}")})  # fmt: skip
    size, parts = 0, list[str]()
    folder.mkdir()
    with path.open("w", encoding="utf-8") as file:
        for name in names:
            try:
                text = name.read_text("utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            if not text.strip():
                continue
            file.write(json.dumps({"text": text}) + "\n")
            size += len(text.encode())
            parts.append(text)
            if size > megabytes * 1e6:
                break
    share = len(parts) // 16 + 1
    for index in range(16):
        text = "\n".join(parts[index * share : (index + 1) * share])
        (folder / f"{index:02}.txt").write_text(text, encoding="utf-8")
    return size


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--megabytes", type=float, default=128)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--litgpt", metavar="PYTHON", help="a Python that has litgpt and litdata")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        source, texts, work, out, cache = (root / n for n in ("a.jsonl", "texts", "w", "o", "c"))
        size = corpus(source, texts, chosen.megabytes)
        bigmodel = [sys.executable, "-m", "bigmodel_cli"]
        subprocess.run([*bigmodel, "prepare", source, "-w", work, "--vocab-size", "8192", "--quiet",
                        "--test", "0"], check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        codec = root / "codec"
        shutil.copytree(work / "data" / "codec", codec)

        def fresh() -> None:
            for folder in (work, out, cache, texts / "train", texts / "val"):
                shutil.rmtree(folder, ignore_errors=True)
            out.mkdir()
            os.sync()  # nobody waits for what another one wrote

        ours = [*bigmodel, "prepare", str(source), "-w", str(work), "--tokenizer", str(codec),
                "--test", "0", "--quiet"]  # fmt: skip
        theirs = [
            sys.executable,
            "-c",
            RECIPE,
            str(source),
            str(codec / "tokenizer.json"),
            str(out),
        ]
        quiet = {"HF_DATASETS_CACHE": str(cache), "TOKENIZERS_PARALLELISM": "false",
                 "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
        contestants = [
            Contestant("bigmodel prepare", ours, fresh),
            Contestant(f"datasets.map recipe ({importlib.metadata.version('datasets')})", theirs,
                       fresh, quiet),
        ]  # fmt: skip
        if chosen.litgpt:
            (codec / "tokenizer_config.json").write_text(
                json.dumps({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
                            "tokenizer_class": "PreTrainedTokenizerFast"})
            )  # fmt: skip
            script = root / "litgpt_prepare.py"
            script.write_text(LITGPT)
            version = subprocess.run(
                [chosen.litgpt, "-c", "import importlib.metadata as m; print(m.version('litgpt'))"],
                capture_output=True, text=True, check=True,
            ).stdout.strip()  # fmt: skip
            contestants.append(
                Contestant(f"litgpt TextFiles ({version})",
                           [chosen.litgpt, str(script), str(texts), str(codec)], fresh,
                           {"DATA_OPTIMIZER_CACHE_FOLDER": str(cache / "a"),
                            "DATA_OPTIMIZER_DATA_CACHE_FOLDER": str(cache / "b")})
            )  # fmt: skip
        alternate(contestants, chosen.rounds)
        Contestant("", ours, fresh).run()
        again = Contestant("up to date again", ours)
        alternate([again], 3)

    rows = [["", "MB/s", "wall s", "CPU s", "peak MB", "bigmodel is"]]
    best = statistics.median(contestants[0].wall)
    for one in contestants:
        times = statistics.median(one.wall)
        rows.append([one.name, f"{size / 1e6 / times:.1f}", spread(one.wall), spread(one.cpu),
                     f"{statistics.median(one.memory):.0f}", f"{times / best:.1f}×"])  # fmt: skip
    print(f"{size / 1e6:.0f} MB of text, {chosen.rounds} rounds, {machine()}")
    table(rows)
    print(f"up to date again in {statistics.median(again.wall):.2f} s")


if __name__ == "__main__":
    main()
