"""Where each configuration value comes from, and what is said of a wrong one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from bigmodel_cli import config, options
from bigmodel_cli.errors import UsageError
from bigmodel_cli.options import Key, Resolved, identity, keys, option, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One key of each kind."""

    name: str = option("plain", "Text.")
    color: str = option("red", "A choice.", choices=("red", "green", "blue"))
    count: int = option(3, "A whole number.", minimum=1, maximum=9)
    limit: int | None = option(None, "Maybe a whole number.")
    share: float = option(0.5, "A number.", minimum=0, maximum=1)
    rate: float | None = option(None, "A number above none.", above=0)
    quick: bool = option(False, "Yes or no.")
    names: tuple[str, ...] = option((), "Several.")
    learning_rate: float = option(0.1, "Two words.")
    hidden: int = option(0, "Does not matter for the result.", identity=False)
    later: int = option(0, "Of another stage.", stage="train")


KNOWN = tuple(key for key in keys(Sample) if key.name != "later")


def settle(
    flags: Mapping[str, Any] | None = None,
    recipe: Path | None = None,
    sets: Sequence[str] = (),
    **environ: str,
) -> Resolved:
    return resolve("prepare", KNOWN, flags or {}, recipe=recipe, sets=sets, environ=environ)


def toml(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def refused(message: str, hint: str = "", **given: Any) -> None:
    with pytest.raises(UsageError) as caught:
        settle(**given)
    assert message in caught.value.message
    assert hint in caught.value.hint


# Precedence -----------------------------------------------------------------------------------


def test_a_flag_beats_the_environment_beats_the_recipe_beats_the_default(tmp_path: Path) -> None:
    recipe = toml(tmp_path, "[prepare]\ncount = 5\nname = 'recipe'\nshare = 0.25\n")
    resolved = settle(
        {"count": 7, "color": None}, recipe, BIGMODEL_PREPARE_COUNT="6", BIGMODEL_PREPARE_NAME="env"
    )
    assert resolved.values["count"] == 7
    assert resolved.values["name"] == "env"
    assert resolved.values["share"] == 0.25
    assert resolved.values["color"] == "red"
    assert [resolved.origins[name] for name in ("count", "name", "share", "color")] == [
        "flag", "environment", f"recipe {recipe}", "default",
    ]  # fmt: skip


def test_every_layer_alone_sets_the_value(tmp_path: Path) -> None:
    recipe = toml(tmp_path, "[prepare]\ncount = 4\n")
    assert settle().values["count"] == 3
    assert settle(recipe=recipe).values["count"] == 4
    assert settle(BIGMODEL_PREPARE_COUNT="4").values["count"] == 4
    assert settle(sets=["count=4"]).values["count"] == 4
    assert settle({"count": "4"}).values["count"] == 4


def test_set_beats_the_environment_and_the_recipe(tmp_path: Path) -> None:
    recipe = toml(tmp_path, "[prepare]\ncount = 4\n")
    resolved = settle(None, recipe, ["count=5"], BIGMODEL_PREPARE_COUNT="6")
    assert resolved.values["count"] == 5
    assert "--set" in resolved.origins["count"]


def test_the_last_set_of_a_key_counts() -> None:
    assert settle(sets=["count=4", "count=5"]).values["count"] == 5


def test_a_stage_reads_its_own_table_and_its_own_variables(tmp_path: Path) -> None:
    recipe = toml(tmp_path, "[train]\ncount = 8\nanything = 1\n[prepare]\nshare = 1\n")
    resolved = settle(None, recipe, BIGMODEL_TRAIN_COUNT="9", BIGMODEL_WORKDIR="x", HOME="y")
    assert resolved.values["count"] == 3
    assert resolved.values["share"] == 1.0


def test_dashes_and_underscores_are_the_same(tmp_path: Path) -> None:
    for text in ("learning-rate", "learning_rate"):
        assert settle(sets=[f"{text}=0.7"]).values["learning_rate"] == 0.7
        recipe = toml(tmp_path, f"[prepare]\n{text} = 0.7\n")
        assert settle(recipe=recipe).values["learning_rate"] == 0.7


# Types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("name=a=b", "a=b"), ("name=", ""), ("name= x ", "x"), ("color=blue", "blue"),
        ("count=9", 9), ("limit=-12", -12), ("share=1e-3", 0.001), ("share=1", 1.0),
        ("rate=0.1", 0.1), ("quick=true", True), ("quick=Yes", True), ("quick=1", True),
        ("quick=False", False), ("quick=no", False), ("quick=0", False),
        ("names=a,b", ("a", "b")), ("names=a", ("a",)),
    ],
)  # fmt: skip
def test_a_string_becomes_the_keys_type(given: str, value: Any) -> None:
    found = settle(sets=[given]).values[given.partition("=")[0]]
    assert found == value
    assert type(found) is type(value)
    name, _, text = given.partition("=")
    assert settle(**{f"BIGMODEL_PREPARE_{name.upper()}": text.strip()}).values[name] == value


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("name = 'x'", "x"), ("name = 0.05", "0.05"), ("count = 9", 9), ("share = 1", 1.0),
        ("quick = true", True), ("names = ['a,b', 'c']", ("a,b", "c")), ("names = []", ()),
        ("names = 'a'", ("a",)),
    ],
)  # fmt: skip
def test_a_toml_value_becomes_the_keys_type(tmp_path: Path, given: str, value: Any) -> None:
    found = settle(recipe=toml(tmp_path, f"[prepare]\n{given}\n")).values[given.split(" ")[0]]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("count=2.5", "--count is `2.5`, but must be a whole number"),
        ("count=", "must be a whole number"),
        ("count=many", "must be a whole number"),
        ("count=0", "--count is `0`, but must be at least 1"),
        ("count=10", "must be at most 9"),
        ("share=nan", "--share is `nan`, but must be a number"),
        ("share=inf", "must be a number"),
        ("share=1.01", "must be at most 1"),
        ("rate=0", "must be above 0"),
        ("quick=maybe", "--quick is `maybe`, but must be true or false"),
        ("learning_rate=x", "--learning-rate is `x`"),
        ("limit=1e30", "must be at most 9007199254740992"),
        ("color=purple", "--color is `purple`"),
    ],
)
def test_a_wrong_value_is_refused_from_wherever_it_comes(
    tmp_path: Path, given: str, message: str
) -> None:
    name, _, text = given.partition("=")
    refused(message, sets=[given])
    refused(message, flags={name: text})
    refused(message, **{f"BIGMODEL_PREPARE_{name.upper()}": text})
    refused(message, recipe=toml(tmp_path, f"[prepare]\n{name} = '{text}'\n"))


@pytest.mark.parametrize(
    "given",
    [
        "count = true", "count = [1]", "count = {a = 1}", "count = 1979-05-27",
        "share = true", "share = [0.5]", "share = {a = 1}", "share = nan",
        "quick = 2", "quick = 'x'", "quick = []",
        "name = ['a', 'b']", "name = {a = 1}", "name = true", "color = ['red']",
        "names = {a = 1}", "names = [['a']]",
    ],
)  # fmt: skip
def test_a_toml_value_of_another_type_is_refused(tmp_path: Path, given: str) -> None:
    key = given.split(" ")[0]
    refused(f"--{key}", recipe=toml(tmp_path, f"[prepare]\n{given}\n"))


# Unknown keys ---------------------------------------------------------------------------------


def test_an_unknown_key_gets_a_suggestion_wherever_it_stands(tmp_path: Path) -> None:
    for given in (
        {"sets": ["cuont=4"]},
        {"flags": {"cuont": 4}},
        {"BIGMODEL_PREPARE_CUONT": "4"},
        {"recipe": toml(tmp_path, "[prepare]\ncuont = 4\n")},
    ):
        refused("`cuont`", "`count`", **given)  # type: ignore[arg-type]


def test_without_a_near_key_all_are_listed() -> None:
    refused("`zzzzzz`", "known: color, count", sets=["zzzzzz=1"])


def test_an_unknown_choice_gets_a_suggestion() -> None:
    refused("`gren`", "`green`", sets=["color=gren"])


def test_an_unknown_table_gets_a_suggestion(tmp_path: Path) -> None:
    refused("`prepair`", "`prepare`", recipe=toml(tmp_path, "[prepair]\ncount = 4\n"))
    refused("`count`", recipe=toml(tmp_path, "count = 4\n"))


def test_a_set_without_a_value_is_refused() -> None:
    refused("`--set count` is not key=value", "--set", sets=["count"])


def test_a_recipe_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    refused("no recipe at", "--config", recipe=tmp_path / "none.toml")
    refused("cannot be read", recipe=tmp_path)
    refused("cannot be read", recipe=toml(tmp_path, "[prepare\n"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    refused("cannot be read", recipe=tmp_path / "bytes.toml")


# Declarations ---------------------------------------------------------------------------------


def test_keys_are_what_the_dataclass_declares() -> None:
    table: dict[str, Key] = {key.name: key for key in keys(Sample)}
    assert list(table) == [item.name for item in dataclasses.fields(Sample)]
    assert (table["limit"].type, table["limit"].repeated) == (int, False)
    assert (table["names"].type, table["names"].repeated) == (str, True)
    assert table["learning_rate"].flag == "--learning-rate"
    assert [key.name for key in keys(Sample, "train")] == ["later"]


def test_values_build_the_dataclass() -> None:
    resolved = settle(sets=["count=4", "names=a,b"])
    built = resolved.build(Sample, later=5)
    assert built == Sample(count=4, names=("a", "b"), later=5)


def test_identity_leaves_out_what_does_not_change_the_result() -> None:
    assert "hidden" not in identity(Sample())
    assert identity(Sample(hidden=1)) == identity(Sample())
    assert identity(Sample(count=4)) != identity(Sample())


CONFIGS = [
    config.PrepareConfig, config.TrainConfig, config.EvaluateConfig, config.DeployConfig,
    config.PredictConfig,
]  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_default_is_valid_and_every_key_explained(kind: type) -> None:
    for key in keys(kind):
        assert key.meta["help"].strip().endswith((".", "`"))
        if key.default is not None:
            assert options.convert(key, key.default) == key.default
        assert key.type in (str, int, float, bool)
    assert resolve("prepare", keys(kind), {}, environ={}).build(kind) == kind()


@pytest.mark.parametrize("kind", CONFIGS)
def test_threads_never_matter_for_a_fingerprint(kind: type) -> None:
    assert "threads" in {item.name for item in dataclasses.fields(kind)}
    if kind is not config.PredictConfig:  # has no fingerprint
        assert "threads" not in identity(kind())


# On the command line --------------------------------------------------------------------------


def run(folder: Path, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("BIGMODEL_")}
    return subprocess.run(
        [sys.executable, "-m", "bigmodel_cli", *argv],
        cwd=folder, env={**kept, **environ}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_show_config_names_each_origin_and_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[prepare]\nmin_chars = 5\nval = 0.1\n")
    done = run(
        tmp_path, "prepare", "a.txt", "--config", "r.toml", "--tokenizer", "chars", "--set",
        "seed=3", "--show-config", BIGMODEL_PREPARE_VAL="0.2",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "[prepare]"
    assert 'sources = ["a.txt"]  # flag' in lines
    assert 'tokenizer = "chars"  # flag' in lines
    assert "seed = 3  # flag --set" in lines
    assert 'val = "0.2"  # environment' in lines
    assert "min_chars = 5  # recipe r.toml" in lines
    assert 'test = "0.05"  # default' in lines
    assert not (tmp_path / "work").exists()
    # it is a recipe itself, which gives the same
    (tmp_path / "again.toml").write_text(done.stdout)
    table = tomllib.loads(done.stdout)["prepare"]
    assert (table["seed"], table["val"], table["sources"]) == (3, "0.2", ["a.txt"])
    again = run(tmp_path, "prepare", "--config", "again.toml", "--show-config", "--json")
    document = json.loads(again.stdout)["prepare"]
    assert {name: document[name]["value"] for name in table} == table
    assert document["seed"] == {"value": 3, "origin": "recipe again.toml"}
    assert document["vocab_size"] == {"value": None, "origin": "default"}


@pytest.mark.slow
def test_a_wrong_flag_is_exit_2_with_a_hint(tmp_path: Path) -> None:
    done = run(tmp_path, "prepare", "a.txt", "--set", "vocab_sice=300")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: unknown key `vocab_sice` for `prepare` (flag --set)\n"
        "hint: did you mean `vocab_size`?\n"
    )
