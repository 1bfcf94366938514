"""The names in requests: which of them are refused, and which are ignored, aloud.

One table for every way in. A name that would change the answer of another engine, and does not
change ours, is refused: an answer that looks right would be wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

from bigmodel_cli.errors import DataError
from bigmodel_cli.tasks import Document

ALIASES = {"max_completion_tokens": "max_tokens"}  # OpenAI's later name
# what other engines call ours, further away than a slip of the pen
OTHERS = {
    "max_new_tokens": "max_tokens", "n_predict": "max_tokens", "num_predict": "max_tokens",
    "max_length": "max_tokens", "num_beams": "beam", "beam_width": "beam", "beam_size": "beam",
    "stop_sequences": "stop", "stop_strings": "stop", "stop_words": "stop", "stop_token": "stop",
    "temp": "temperature", "random_seed": "seed", "num_return_sequences": "n", "top_n": "k",
    "num_results": "k",
}  # fmt: skip
# What requests to this program or to other engines may hold, and the values that ask for nothing.
# Those that the task at hand knows are its own.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    # of this program's other tasks
    "max_tokens": (), "temperature": (0,), "top_k": (0,), "top_p": (1,), "stop": ([], ""),
    "system": ("",), "beam": (1,), "length_penalty": (1,), "k": (), "repeat": (False,),
    # OpenAI's
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "logprobs": (0,),
    "top_logprobs": (0,), "best_of": (0, 1), "n": (1,), "echo": (False,), "stream": (False,),
    "suffix": ("",), "response_format": ({"type": "text"},), "tools": ([],),
    "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    # vLLM's, transformers', llama.cpp's
    "min_p": (0,), "typical_p": (1,), "repetition_penalty": (1,), "repeat_penalty": (1,),
    "no_repeat_ngram_size": (0,), "encoder_repetition_penalty": (1,), "penalty_alpha": (0,),
    "min_tokens": (0,), "min_new_tokens": (0,), "min_length": (0,), "stop_token_ids": ([],),
    "eos_token_id": (), "ignore_eos": (False,), "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,),
    "add_special_tokens": (True,), "truncate_prompt_tokens": (), "prompt_logprobs": (),
    "bad_words": ([],), "allowed_token_ids": (), "logits_processors": ([],),
    "use_beam_search": (False,), "do_sample": (), "structured_outputs": (), "guided_json": (),
    "guided_regex": (), "guided_choice": (), "guided_grammar": (), "grammar": ("",),
    "json_schema": (), "mirostat": (0,), "tfs_z": (1,), "top_a": (0,), "dry_multiplier": (0,),
    "xtc_probability": (0,), "dynatemp_range": (0,), "diversity_penalty": (0,),
    "num_beam_groups": (1,), "bad_words_ids": ([],), "early_stopping": (False,),
    "watermark": (False,), "sampling_params": ({},), "return_full_text": (False,),
    "chat_template": (), "continue_final_message": (False,), "add_generation_prompt": (True,),
    "source_lang": (), "target_lang": (),
}  # fmt: skip
EDITS = 2  # of a name that is taken for a slip of the pen
# letters of a name that may have slips, of the task's own and of others': two edits make `k` any
# short word, and `beam` a `year`
SHORTEST, SHORTEST_OTHER = 4, 8
HARMLESS = ("store", "user", "metadata")  # OpenAI's, which change no answer
LONGEST = 64  # letters of a name that may be near to one
MOST_UNKNOWN = 256  # each of which is compared with those that are known


def checked(document: Document, known: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """A request under the names that are known, and the names of what else it holds, which is
    ignored. Null is absent.

    Raises DataError for what other engines heed and this one does not, and for a name that is
    within two edits of one that could have been meant.
    """
    given = {name: value for name, value in document.items() if value is not None}
    for alias, name in ALIASES.items():
        if alias in given and name in known:
            if given.setdefault(name, given[alias]) != given[alias]:
                raise DataError(f"`{alias}` and `{name}` say different things", "give one of them")
            del given[alias]
    kept = {name: value for name, value in given.items() if name in known}
    rest = [name for name in given if name not in known]
    if len(rest) > MOST_UNKNOWN:
        raise DataError(
            f"the request has {len(rest):,} names that are unknown, more than {MOST_UNKNOWN:,}",
            "known: " + ", ".join(f"`{name}`" for name in sorted(known)),
        )
    others = (name for name in (*UNSUPPORTED, *ALIASES) if len(name) >= SHORTEST_OTHER)
    names = frozenset((*known, *others))
    refused, meant, ignored = [], {}, []
    for name in rest:
        if name in UNSUPPORTED:
            refused += [] if given[name] in UNSUPPORTED[name] else [name]
        elif name in OTHERS and OTHERS[name] in known:
            meant[name] = OTHERS[name]
        elif name in OTHERS or name in ALIASES:
            refused.append(name)
        elif name not in HARMLESS and len(name) < LONGEST and (near := nearest(name, names)):
            meant[name] = near
        else:
            ignored.append(name)
    said = []
    if meant:
        said.append(f"{_listed(meant)} unknown; did you mean {_quoted(meant.values())}?")
    if refused:
        said.append(f"{_listed(refused)} unsupported here, and would be ignored")
    if said:
        raise DataError("; ".join(said), "correct the names, or leave them out")
    return kept, ignored


def _quoted(names: Collection[str]) -> str:
    return ", ".join(f"`{name if len(name) <= 60 else name[:57] + '…'}`" for name in names)


def _listed(names: Collection[str]) -> str:
    return _quoted(names) + (" is" if len(names) == 1 else " are")


@functools.lru_cache(1024)  # lines tend to have the same names
def nearest(name: str, known: frozenset[str]) -> str:
    """The known name that differs from this one in at most two letters; capitals, and hyphens for
    underscores, do not count. Nothing if there is none."""
    plain = name.casefold().replace("-", "_")
    if plain in known:
        return plain
    near = [
        (distance, other)
        for other in known
        if min(len(other), len(plain)) >= SHORTEST - 1
        and len(other) >= SHORTEST
        and abs(len(other) - len(plain)) <= EDITS
        and (distance := edits(plain, other)) <= EDITS
    ]
    return min(near)[1] if near else ""


def edits(one: str, other: str) -> int:
    """How many letters to put in, leave out or change (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, row = row, [i]
        for j, wanted in enumerate(other, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != wanted)))
    return row[-1]
