"""The server, run for real on a free port, against plain HTTP, raw sockets and OpenAI's client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
import torch
import torch.nn.functional as F
import uvicorn
from openai.types import Completion

from bigmodel_cli.artifacts import checkpoint, tokenizer
from bigmodel_cli.artifacts.bundle import FILE as BUNDLE
from bigmodel_cli.artifacts.manifest import file_info, write_json
from bigmodel_cli.artifacts.records import as_json
from bigmodel_cli.deploy import server
from bigmodel_cli.deploy.predict import Predictor
from bigmodel_cli.errors import UsageError
from bigmodel_cli.models.sequence import SequenceModel
from bigmodel_cli.models.shape import Shape
from bigmodel_cli.models.sizes import model_config
from bigmodel_cli.tasks import save_task
from bigmodel_cli.tasks.language import Language, LanguageOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CYCLE = "Zürich naïve 日本語 🙂 fjörd – "  # most of its characters have several bytes
CONTEXT = 64
# the likeliest tokens go round in CYCLE for ever; drawn ones would come upon the text's end
ENDLESS = {"prompt": "Zü", "max_tokens": 1 << 20, "temperature": 0}


MANIFEST = {"name": "tiny/model", "layout": "native", "task": "language", "fingerprint": "",
            "training": "", "data_fingerprint": ""}  # fmt: skip


def bundle(folder: Path, objective: str, steps: int) -> Predictor:
    """A tiny model of bytes that learned to go on with CYCLE for some steps."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more would wait for each other
    codec = tokenizer.train([CYCLE], "bytes", 0, lambda run: run())
    save_task(Language(LanguageOptions(objective=objective, context=CONTEXT), codec), folder)
    shape = Shape(codec.size, CONTEXT, causal=objective == "next")
    config = model_config("transformer", "nano", shape, width=32, layers=1, heads=2, hidden=64)
    model = SequenceModel(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    text = torch.tensor(codec.encode(CYCLE * 5))
    for _ in range(steps):
        starts = torch.randint(len(codec.encode(CYCLE)), (8,))
        rows = torch.stack([text[start : start + CONTEXT] for start in starts])
        inputs = torch.cat([torch.full((8, 1), codec.endoftext), rows[:, :-1]], 1)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), rows.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    checkpoint.save_tensors(folder / checkpoint.MODEL, model.state_dict())
    files = {path.name: as_json(file_info(path)) for path in folder.iterdir()}
    write_json(folder / BUNDLE, {"files": files, "model": config.to_json(), **MANIFEST})
    return Predictor(folder, "cpu", threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle")
    bundle(path, "next", 120)
    return path


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor(folder, "cpu", threads=1)


@pytest.fixture(scope="module")
def url(predictor: Predictor) -> Iterator[str]:
    """`serve` itself, in a thread."""
    servers: list[uvicorn.Server] = []
    urls: list[str] = []

    class Recorded(uvicorn.Server):
        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            servers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.uvicorn, "Server", Recorded)
        patch.setattr(server, "GRACE", 1)
        thread = threading.Thread(
            target=server.serve, args=(predictor, "localhost", 0, urls.append)
        )
        thread.start()
        deadline = time.monotonic() + 10
        while not urls and time.monotonic() < deadline:
            time.sleep(0.01)
        assert urls[0].startswith("http://localhost:")
        yield urls[0]
        servers[0].should_exit = True
        thread.join(5)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=10) as client:
        yield client


@pytest.fixture(scope="module")
def strict(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key="x", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def complete(http: httpx.Client, **document: Any) -> dict[str, Any]:
    answer = http.post("/v1/completions", json=document)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(http: httpx.Client, **document: Any) -> list[dict[str, Any]]:
    """The chunks of a stream that ends as it should."""
    answer = http.post("/v1/completions", json={**document, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *lines, last, end = answer.text.split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def joined(chunks: list[dict[str, Any]]) -> dict[int, tuple[str, str]]:
    """Each choice's text and finish reason, which is in its last chunk and in no other."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            assert choice["index"] not in reasons
            assert choice["logprobs"] is None
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
            if choice["finish_reason"]:
                reasons[choice["index"]] = choice["finish_reason"]
    assert texts.keys() == reasons.keys()
    return {index: (texts[index], reasons[index]) for index in texts}


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """An error's body, whose form is the same everywhere."""
    assert answer.status_code == status, answer.text
    document = answer.json()
    assert document.keys() == {"error"}
    error = document["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert isinstance(error["message"], str)
    assert error["message"]
    return error


def raw(url: str, head: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """The status and document that answer bytes written as they are."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


# /predict ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": "Zürich "},
        {"prompt": "", "max_tokens": 3, "id": None},
        {"prompt": "日本", "temperature": 1.5, "seed": 7, "top_p": 0.9, "id": [1, {"a": "\ud800"}]},
        {"prompt": "naïve", "stop": "🙂", "max_tokens": 90, "id": 10**20, "unknown": 1},
        {"prompt": "naïve", "stop": None, "max_tokens": None},
    ],
)
def test_predict_answers_as_the_command_does(
    http: httpx.Client, predictor: Predictor, document: dict[str, Any]
) -> None:
    line = json.dumps(document).encode()
    answer = http.post("/predict", content=line)
    assert answer.status_code == 200
    assert answer.json() == predictor.answer_lines([line], {})[0]


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens"),
        ({"prompt": "x", "temperature": "hot"}, "temperature"),
        ({"prompt": "x", "stop": [1]}, "stop"),
    ],
)
def test_predict_refuses_what_the_command_refuses(
    http: httpx.Client, predictor: Predictor, document: dict[str, Any], param: str
) -> None:
    line = json.dumps(document).encode()
    error = problem(http.post("/predict", content=line), 400)
    assert error["message"].startswith(predictor.answer_lines([line], {})[0]["error"]["message"])
    assert error["param"] == param


# /v1/completions -----------------------------------------------------------------------------


@pytest.mark.slow
def test_greedy_text_is_that_of_predict(http: httpx.Client, strict: openai.OpenAI) -> None:
    wanted = http.post("/predict", json={"prompt": "Zü", "max_tokens": 70}).json()
    assert wanted["text"].startswith("rich naïve 日本語 🙂")  # or the tests below show little
    answer = strict.completions.create(
        model="tiny/model", prompt="Zü", max_tokens=70, temperature=0, extra_body={"user": 5}
    )
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, wanted["text"], "length")
    assert abs(answer.created - time.time()) < 60
    assert answer.model == "tiny/model"
    assert answer.usage
    # <|endoftext|>, Z, and two bytes of ü
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 70)
    assert answer.usage.total_tokens == 74


def test_defaults_are_openais(http: httpx.Client) -> None:
    answer = complete(http, prompt="Zü", model=None, max_tokens=None, temperature=None, stop=None)
    assert answer["usage"]["completion_tokens"] <= 16
    hot = {"prompt": "Q", "max_tokens": 24}
    texts = {complete(http, **hot)["choices"][0]["text"] for _ in range(4)}
    assert len(texts) > 1  # temperature 1, and a seed that nobody gave
    cold = {complete(http, **hot, temperature=0)["choices"][0]["text"] for _ in range(3)}
    assert len(cold) == 1


@pytest.mark.slow
def test_stop_texts(http: httpx.Client) -> None:
    greedy: dict[str, Any] = {"prompt": "Zü", "max_tokens": 60, "temperature": 0}
    text = complete(http, **greedy)["choices"][0]["text"]
    for stop in ("日本", ["nowhere", "ï", "語"], [" 🙂 fj"], ["a", "b", "c", "🙂"]):
        cut = min(text.find(s) for s in ([stop] if isinstance(stop, str) else stop) if s in text)
        (choice,) = complete(http, **greedy, stop=stop)["choices"]
        assert (choice["text"], choice["finish_reason"]) == (text[:cut], "stop")
        assert joined(events(http, **greedy, stop=stop)) == {0: (text[:cut], "stop")}
    assert complete(http, **greedy, stop=[])["choices"][0]["text"] == text


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 1, 1.7])
@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_is_the_whole_in_parts(http: httpx.Client, temperature: float, echo: bool) -> None:
    document = {
        "prompt": ["Zü", "日本語 🙂 fj"], "n": 2, "max_tokens": 50, "temperature": temperature,
        "seed": 3, "echo": echo,
    }  # fmt: skip
    whole = complete(http, **document)
    chunks = events(http, **document, stream_options={"include_usage": True})
    *parts, last = chunks
    assert joined(parts) == {c["index"]: (c["text"], c["finish_reason"]) for c in whole["choices"]}
    assert [c["index"] for c in whole["choices"]] == [0, 1, 2, 3]
    assert len(parts) > 20
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert whole["usage"]["prompt_tokens"] == len("Zü日本語 🙂 fj".encode()) + 2
    assert {chunk["id"] for chunk in chunks} != {whole["id"]}
    for key in ("id", "created", "object", "model"):
        assert len({chunk[key] for chunk in chunks}) == 1
    for chunk in parts:
        assert chunk["usage"] is None
        for choice in chunk["choices"]:  # which the client's strict form wants in each of them
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        Completion.model_validate(chunk, strict=True)
    assert not [chunk for chunk in events(http, **document) if not chunk["choices"]]


def test_streams_through_the_strict_client(url: str, strict: openai.OpenAI) -> None:
    """It wants a finish reason in every chunk, as nobody sends it: here each choice has one."""
    chunks = list(
        strict.completions.create(
            model="tiny/model", prompt=["Zü", "na"], max_tokens=1, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert [[c.finish_reason for c in chunk.choices] for chunk in chunks] == [["length"]] * 2 + [[]]
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 2
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        stream = client.completions.create(
            model="tiny/model", prompt="Zü", max_tokens=40, temperature=0, stream=True
        )
        text = "".join(chunk.choices[0].text for chunk in stream)
    answer = strict.completions.create(
        model="tiny/model", prompt="Zü", max_tokens=40, temperature=0
    )
    assert text == answer.choices[0].text


@pytest.mark.slow
def test_choices(http: httpx.Client, predictor: Predictor) -> None:
    hot = {"max_tokens": 20, "temperature": 1.7, "seed": 11}
    answer = complete(http, prompt=["Zü", "日本"], n=8, **hot)
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == list(range(16))
    assert len(set(texts)) > 12
    for number, prompt in enumerate(["Zü", "日本"]):  # as alone, and as with /predict
        alone = complete(http, prompt=prompt, n=8, **hot)
        assert [choice["text"] for choice in alone["choices"]] == texts[number * 8 :][:8]
        predicted = http.post("/predict", json={"prompt": prompt, **hot}).json()
        assert predicted["text"] == texts[number * 8]
    codec = predictor.task.tokenizer  # type: ignore[attr-defined]
    ids = [[codec.endoftext, *codec.encode(prompt)] for prompt in ("Zü", "日本")]
    assert complete(http, prompt=ids, n=8, **hot)["choices"] == answer["choices"]
    one = complete(http, prompt=ids[1], **hot)
    assert one["choices"][0]["text"] == texts[8]
    assert one["usage"]["prompt_tokens"] == 7
    unseeded = complete(http, prompt=["Q", "Q"], n=2, max_tokens=20, temperature=1.7)
    assert len({choice["text"] for choice in unseeded["choices"]}) > 1


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": True}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1.0]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [272]}, "prompt"),
        ({"prompt": [[5], [10**20]]}, "prompt"),
        ({"prompt": [[[5]]]}, "prompt"),
        ({"prompt": ["a", None]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 17, "n": 8}, "prompt"),
        ({"prompt": "\udc80"}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"n": "2"}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 10**20}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": False}, "temperature"),
        ({"temperature": []}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": {}}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"echo": 0}, "echo"),
        ({"model": 5}, "model"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"suffix": {}}, "suffix"),
    ],
)
def test_wrong_completions(http: httpx.Client, extra: dict[str, Any], param: str) -> None:
    for stream in (True, False):
        content = json.dumps({"prompt": "x", "stream": stream, **extra}).encode()
        error = problem(http.post("/v1/completions", content=content), 400)
        assert error["param"] == param
        if param in ("logprobs", "best_of", "suffix"):
            assert "unsupported" in error["message"]


def test_what_asks_for_nothing_is_accepted(http: httpx.Client) -> None:
    complete(http, prompt="x", logprobs=0, best_of=1, suffix="", n=None, stream_options=None)
    complete(http, prompt="x", best_of=0, logit_bias={}, seed=(1 << 63) - 1, n=2)
    complete(http, prompt="x", frequency_penalty=0, presence_penalty=0.0, min_p=0, min_tokens=0)
    complete(http, prompt="x", repetition_penalty=1, response_format={"type": "text"})
    complete(http, prompt="x", stop_token_ids=[], skip_special_tokens=True, ignore_eos=False)
    complete(http, prompt=[0, 5, 271, 255], stream=None, echo=None, model="tiny/model")


def test_models(http: httpx.Client, strict: openai.OpenAI) -> None:
    (card,) = strict.models.list()
    assert (card.id, card.object) == ("tiny/model", "model")
    assert strict.models.retrieve("tiny/model") == card
    assert http.get("/v1/models/tiny/model").json() == card.to_dict()
    with pytest.raises(openai.NotFoundError) as caught:
        strict.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        strict.completions.create(model="gpt-4", prompt="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        strict.completions.create(model="tiny/model", prompt="x", n=9)
    assert wrong.value.param == "n"


def test_a_masked_model_has_no_completions(tmp_path: Path) -> None:
    application = server.app(bundle(tmp_path, "masked", 0))

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://[::1]:80") as client:
            return [
                await client.post("/v1/completions", json={"prompt": "x"}),
                await client.post("/predict", json={"prompt": "no gap"}),
                await client.post("/predict", json={"prompt": "a <|mask|>", "id": 1}),
            ]

    completions, wrong, right = asyncio.run(ask())
    assert "/predict" in problem(completions, 404)["message"]
    assert "left out" in problem(wrong, 400)["message"]
    assert right.json().keys() == {"id", "text", "finish_reason"}


# What is asked ---------------------------------------------------------------------------------


def greedy(predictor: Predictor, ids: list[int], count: int) -> list[int]:
    """What the model itself writes after these very ids."""
    tokens = list(ids)
    with torch.inference_mode():
        for _ in range(count):
            logits = predictor.model(torch.tensor([tokens]))[0, -1]
            codec = predictor.task.tokenizer  # type: ignore[attr-defined]
            logits[[i for i in codec.specials if i != codec.endoftext]] = -torch.inf
            tokens.append(int(logits.argmax()))
    return tokens[len(ids) :]


@pytest.mark.slow
def test_ids_are_read_exactly(http: httpx.Client, predictor: Predictor) -> None:
    """Decoded and encoded again they would be others: half a character, specials."""
    codec: Any = predictor.task.tokenizer  # type: ignore[attr-defined]
    end, body = codec.endoftext, codec.encode(CYCLE)
    prompts = [body[:5], [end, *body[:5]], [end, end], [codec.mask, *body[40:43]], body[1:3] * 9,
               [end, *body[12:14]]]  # fmt: skip
    how = {"max_tokens": 8, "temperature": 0}
    texts = [codec.decode(greedy(predictor, ids, 8)) for ids in prompts]
    assert len(set(texts)) > 3
    for ids, text in zip(prompts, texts, strict=True):
        answer = complete(http, prompt=ids, **how)
        assert answer["choices"][0]["text"] == text
        assert answer["usage"]["prompt_tokens"] == len(ids)
        assert http.post("/predict", json={"prompt": ids, "max_tokens": 8}).json()["text"] == text
        echoed = complete(http, prompt=ids, echo=True, **how)["choices"][0]["text"]
        assert echoed == codec.decode(ids) + text
    together = complete(http, prompt=prompts, **how)
    assert [choice["text"] for choice in together["choices"]] == texts
    assert together["usage"]["prompt_tokens"] == sum(map(len, prompts))
    mixed = complete(http, prompt=["Zü", prompts[2]], **how)  # texts and ids in one call
    assert mixed["choices"][1]["text"] == texts[2]
    assert mixed["usage"]["prompt_tokens"] == 4 + 2
    for path in ("/predict", "/v1/completions"):
        error = problem(http.post(path, json={"prompt": [5, codec.size]}), 400)
        assert (error["param"], str(codec.size) in error["message"]) == ("prompt", True)


@pytest.mark.parametrize("path", ["/predict", "/v1/completions"])
def test_a_prompt_longer_than_the_context_is_refused(http: httpx.Client, path: str) -> None:
    for prompt, count in (("x" * 64, 65), ("狐" * 30, 91), ([5] * 65, 65)):
        error = problem(http.post(path, json={"prompt": prompt, "max_tokens": 1}), 400)
        assert error["param"] == "prompt"
        assert f"has {count} tokens" in error["message"]
        assert f"at most {CONTEXT}" in error["message"]
    for fits in ("x" * 63, [5] * 64):
        assert http.post(path, json={"prompt": fits, "max_tokens": 1}).status_code == 200
    assert complete(http, prompt="x" * 63, max_tokens=1)["usage"]["prompt_tokens"] == 64


def test_the_card_says_how_much_it_reads(http: httpx.Client, strict: openai.OpenAI) -> None:
    assert http.get("/v1/models").json()["data"][0]["max_model_len"] == CONTEXT
    assert http.get("/v1/models/tiny/model").json()["max_model_len"] == CONTEXT
    assert strict.models.retrieve("tiny/model").to_dict()["max_model_len"] == CONTEXT


def test_control_characters_are_not_read(http: httpx.Client) -> None:
    for path in ("/predict", "/v1/completions"):
        how = {"max_tokens": 9, "temperature": 0}
        clean, odd = (
            http.post(path, json={"prompt": prompt, **how}).json()
            for prompt in ("Zürich", "\ufeffZü\x00r\x1fich")
        )
        for answer in (clean, odd):
            answer.pop("id", None)
            answer.pop("created", None)
        assert clean == odd
        error = problem(http.post(path, json={"prompt": "\x00\x01", **how}), 400)
        assert (error["param"], "blank" in error["message"]) == ("prompt", True)


@pytest.mark.parametrize("path", ["/predict", "/v1/completions"])
@pytest.mark.parametrize(("extra", "names"), [
    ({"frequency_penalty": 0.5}, ["frequency_penalty"]), ({"min_p": 0.1}, ["min_p"]),
    ({"logit_bias": {"5": 1}, "presence_penalty": -1}, ["logit_bias", "presence_penalty"]),
    ({"repetition_penalty": 1.1}, ["repetition_penalty"]), ({"min_tokens": 3}, ["min_tokens"]),
    ({"response_format": {"type": "json_object"}}, ["response_format"]),
    ({"stop_token_ids": [3]}, ["stop_token_ids"]), ({"best_of": 3}, ["best_of"]),
    ({"guided_json": {}}, ["guided_json"]), ({"ignore_eos": True}, ["ignore_eos"]),
    ({"temprature": 0.5}, ["temprature", "temperature"]), ({"max_token": 9}, ["max_tokens"]),
    ({"top-p": 0.5}, ["top-p", "top_p"]), ({"stoop": "x"}, ["stoop", "stop"]),
    ({"beam": 4}, ["beam"]), ({"logprobs": 5}, ["logprobs"]),
])  # fmt: skip
def test_parameters_that_would_be_ignored_are_refused(
    http: httpx.Client, path: str, extra: dict[str, Any], names: list[str]
) -> None:
    error = problem(http.post(path, json={"prompt": "x", "max_tokens": 1, **extra}), 400)
    assert error["param"] == next(iter(extra))
    assert all(f"`{name}`" in error["message"] for name in names)


@pytest.mark.parametrize("path", ["/predict", "/v1/completions"])
def test_other_names_are_ignored_and_listed(http: httpx.Client, path: str) -> None:
    odd = {"user": "me", "a\r\nset-cookie: x": 1, "名,字": 2, "\ud800": 3, "": 4, "none": None}
    answer = http.post(path, content=json.dumps({"prompt": "x", "max_tokens": 1, **odd}).encode())
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    names = answer.headers["x-ignored-parameters"].split(", ")
    assert names == ["user", "a%0D%0Aset-cookie%3A%20x", "%E5%90%8D%2C%E5%AD%97", "%3F", '""']
    many = {f"{number:03d}" * 30: 1 for number in range(100)}
    answer = http.post(path, json={"prompt": "x", "max_tokens": 1, **many})
    assert answer.headers["x-ignored-parameters"].endswith(", ...68-more")
    assert len(answer.headers["x-ignored-parameters"]) < 4096
    answer = http.post(path, json={"prompt": "x", "max_tokens": 1})
    assert "x-ignored-parameters" not in answer.headers
    problem(http.post(path, json={"prompt": "x", **{f"name {n}": n for n in range(257)}}), 400)


def test_a_stream_lists_what_it_ignores(http: httpx.Client) -> None:
    document = {"prompt": "x", "max_tokens": 1, "stream": True, "user": "me"}
    answer = http.post("/v1/completions", json=document)
    assert answer.headers["x-ignored-parameters"] == "user"


def test_max_completion_tokens_is_max_tokens(http: httpx.Client) -> None:
    wanted = complete(http, prompt="Zü", max_tokens=5, temperature=0)
    found = complete(http, prompt="Zü", max_completion_tokens=5, temperature=0)
    assert found["choices"] == wanted["choices"]
    assert found["usage"]["completion_tokens"] == 5
    both = {"prompt": "Zü", "max_tokens": 5, "max_completion_tokens": 6}
    problem(http.post("/v1/completions", json=both), 400)
    predicted = http.post("/predict", json={"prompt": "Zü", "max_completion_tokens": 5}).json()
    assert predicted["text"] == wanted["choices"][0]["text"]


def test_an_echo_of_no_more_than_the_prompt(http: httpx.Client, predictor: Predictor) -> None:
    codec: Any = predictor.task.tokenizer  # type: ignore[attr-defined]
    ids = codec.encode("日本")
    for document in ({"prompt": ["Zü", ids], "n": 2}, {"prompt": ["Zü", ids], "n": 2, "stop": "x"}):
        answer = complete(http, **document, echo=True, max_tokens=0)
        texts = [(choice["text"], choice["finish_reason"]) for choice in answer["choices"]]
        assert texts == [("Zü", "length")] * 2 + [("日本", "length")] * 2
        assert answer["usage"] == {
            "prompt_tokens": 4 + 6,
            "completion_tokens": 0,
            "total_tokens": 10,
        }
        assert joined(events(http, **document, echo=True, max_tokens=0)) == dict(enumerate(texts))
    for wrong in (
        {"max_tokens": 0},
        {"max_tokens": 0, "echo": False},
        {"max_tokens": False, "echo": True},
    ):
        error = problem(http.post("/v1/completions", json={"prompt": "x", **wrong}), 400)
        assert error["param"] == "max_tokens"


# Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b'{"prompt": "x"',
        b'{"prompt": "\xff"}',
        '{"prompt": "x"}'.encode("utf-16"),
        b'{"prompt": "x", "id": NaN}',
        b'{"prompt": "x", "id": -Infinity}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "id": -1e999}',
        b'{"prompt": "x", "max_tokens": 1' + b"0" * 400 + b"}",
        b'{"prompt": "x", "max_tokens": 1' + b"0" * 5000 + b"}",
        b"[" * 1_000_000,
        b'{"prompt": "x", "id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "x", "id": ' + b'{"a": ' * 64 + b"1" + b"}" * 64 + b"}",
        b'{"prompt": "x", "id": ' + b"[" * 64 + b"]" * 64 + b"}",
    ],
)
def test_bodies_that_are_not_json_objects(http: httpx.Client, body: bytes) -> None:
    for path in ("/predict", "/v1/completions"):
        error = problem(http.post(path, content=body), 400)
        assert len(error["message"]) < 200


def test_nesting_that_is_allowed_comes_back(http: httpx.Client) -> None:
    deep: list[Any] = []
    for _ in range(61):
        deep = [deep, 1.5]
    answer = http.post("/predict", json={"prompt": "x", "max_tokens": 1, "id": deep})
    assert answer.json()["id"] == deep


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    for path in ("/", "/docs", "/redoc", "/openapi.json", "/v1", "/predict/", "/v1/chat/x", "/%ff"):
        problem(http.get(path), 404)
    problem(http.get("/v1/models/"), 404)
    for path, allowed in (("/predict", "POST"), ("/v1/completions", "POST")):
        answer = http.get(path)
        problem(answer, 405)
        assert answer.headers["allow"] == allowed
    problem(http.post("/health"), 405)
    problem(http.request("OPTIONS", "/predict", headers={"Origin": "http://localhost"}), 405)
    assert http.get("/health").json() == {"status": "ok"}
    assert not [name for name in http.get("/health").headers if "access-control" in name]


def test_large_bodies(http: httpx.Client, url: str) -> None:
    most = 4 << 20
    empty = len(b'{"prompt": "x", "max_tokens": 1, "pad": ""}')
    padding = b"x" * (most - empty)
    fits = b'{"prompt": "x", "max_tokens": 1, "pad": "' + padding + b'"}'
    assert len(fits) == most

    def chunked(data: bytes) -> Iterator[bytes]:
        yield from (data[i : i + 65536] for i in range(0, len(data), 65536))

    for content in (fits, chunked(fits)):
        assert http.post("/predict", content=content).status_code == 200
    for large in (fits + b" ", chunked(fits + b" "), chunked(fits * 3)):
        problem(http.post("/predict", content=large), 413)
    head = "POST /predict HTTP/1.1\nHost: localhost\nConnection: close\n"
    status, document = raw(url, head + "Content-Length: 99999999999999")
    assert (status, document["error"]["type"]) == (413, "invalid_request_error")
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:9", 200),
        ("127.0.0.1:80", 200),
        ("127.9.9.9", 200),
        ("[::1]:8080", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("evil.example:8000", 400),
        ("127.0.0.1.evil.example", 400),
        ("127.0.0.1@evil.example", 400),
        ("localhost:80:80", 400),
        ("localhost:", 400),
        ("10.0.0.1", 400),
        ("0.0.0.0", 400),
        ("", 400),
    ],
)
def test_host_header(url: str, host: str, status: int) -> None:
    for path in ("/health", "/nowhere"):
        found, document = raw(url, f"GET {path} HTTP/1.1\nHost: {host}\nConnection: close")
        assert found == (404 if (path, status) == ("/nowhere", 200) else status)
        assert status == 200 or document["error"]["type"] == "invalid_request_error"


def test_callers_from_elsewhere(http: httpx.Client, url: str) -> None:
    assert raw(url, "GET /health HTTP/1.0")[0] == 400
    for origin, status in {
        "http://localhost:3000": 200, "https://127.0.0.1": 200, "http://evil.example": 400,
        "null": 400, "": 400,
    }.items():  # fmt: skip
        answer = http.post(
            "/predict", json={"prompt": "x", "max_tokens": 1}, headers={"Origin": origin}
        )
        assert answer.status_code == status
        assert "access-control-allow-origin" not in answer.headers


def test_our_own_failures_tell_nothing(
    http: httpx.Client,
    predictor: Predictor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(_requests: Any) -> Iterator[tuple[int, str, None]]:
        yield 0, "begun", None
        raise RuntimeError("about SECRET")

    monkeypatch.setattr(predictor, "answer", answer)
    document = {"prompt": "SECRET", "max_tokens": 5}
    for path in ("/predict", "/v1/completions"):
        error = problem(http.post(path, json=document), 500)
        assert error["message"] == "internal error"
    answered = http.post("/v1/completions", json={**document, "stream": True})
    first, last, end = answered.text.split("\n\n")
    assert json.loads(first.removeprefix("data: "))["choices"][0]["text"] == "begun"
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert end == ""
    monkeypatch.setattr(predictor, "request", lambda *_: 1 / 0)
    problem(http.post("/predict", json=document), 500)
    assert "RuntimeError at" in caplog.text
    assert "ZeroDivisionError at" in caplog.text
    assert "SECRET" not in caplog.text
    monkeypatch.undo()
    assert http.post("/predict", json=document).status_code == 200


# Clients that leave, and the end ---------------------------------------------------------------


@pytest.mark.slow
def test_a_client_that_leaves_frees_the_model(http: httpx.Client, url: str) -> None:
    def free() -> bool:
        started = time.monotonic()
        answer = http.post("/predict", json={"prompt": "Zü", "max_tokens": 3})
        return answer.status_code == 200 and time.monotonic() - started < 3

    with httpx.stream("POST", f"{url}/v1/completions", json={**ENDLESS, "stream": True}) as answer:
        assert next(answer.iter_lines()).startswith("data: ")
        started = time.monotonic()  # the model is busy, the server is not
        assert http.get("/health").status_code == 200
        assert time.monotonic() - started < 1
        with pytest.raises(httpx.ReadTimeout):  # this one waits, and leaves before its turn
            httpx.post(f"{url}/predict", json=ENDLESS, timeout=0.2)
    assert free()
    for path in ("/predict", "/v1/completions"):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + path, json=ENDLESS, timeout=0.3)
        assert free()


@pytest.mark.slow
def test_many_clients_that_leave(http: httpx.Client, url: str) -> None:
    async def leave(client: httpx.AsyncClient, number: int) -> None:
        document = {**ENDLESS, "stream": number % 2 == 0, "n": 1 + number % 3}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.post("/v1/completions", json=document), 0.5)

    async def leave_all() -> None:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=url, timeout=10, limits=limits) as client:
            await asyncio.gather(*(leave(client, number) for number in range(100)))

    asyncio.run(leave_all())
    started = time.monotonic()
    assert http.post("/predict", json={"prompt": "x", "max_tokens": 3}).status_code == 200
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "::",
        "",
        "192.168.1.5",
        "example.com",
        "localhost.evil.example",
        "*",
        "127.0.0.٣",
        "localhost:80",
        "http://localhost",
        "::ffff:10.0.0.1",
    ],
)
def test_other_hosts_are_refused(predictor: Predictor, host: str) -> None:
    with pytest.raises(UsageError, match="no keys") as caught:
        server.serve(predictor, host, 0, print)
    assert caught.value.hint


def test_occupied_and_impossible_ports(predictor: Predictor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match="in use") as caught:
            server.serve(predictor, "127.0.0.1", port, print)
        assert "--port" in caught.value.hint
    for port in (-1, 65536):
        with pytest.raises(UsageError, match=str(port)):
            server.serve(predictor, "127.0.0.1", port, print)


def served(predictor: Predictor, host: str, act: Callable[[str], None]) -> None:
    """`serve` in this thread, with `act(url)` in another; returns when both have ended."""
    with ThreadPoolExecutor(1) as pool:
        acts = []

        server.serve(predictor, host, 0, lambda url: acts.append(pool.submit(act, url)))
        acts[0].result()


def test_ctrl_c_returns_and_gives_the_signals_back(predictor: Predictor) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def act(url: str) -> None:
        assert httpx.get(f"{url}/health").status_code == 200
        os.kill(os.getpid(), signal.SIGINT)

    started = time.monotonic()
    served(predictor, "127.0.0.1", act)
    assert time.monotonic() - started < 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_ipv6(predictor: Predictor) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")

    def act(url: str) -> None:
        try:
            assert url.startswith("http://[::1]:")
            assert httpx.get(f"{url}/health").status_code == 200
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    served(predictor, "::1", act)


@pytest.mark.slow
def test_sigterm_ends_the_process_quietly(folder: Path) -> None:
    """While a stream and a waiting call are under way; they are cut after the grace time."""
    script = f"""
import os
from pathlib import Path
from bigmodel_cli.deploy import server
from bigmodel_cli.deploy.predict import Predictor
server.GRACE = 0.4
predictor = Predictor(Path({str(folder)!r}), "cpu", threads=1)
server.serve(predictor, "127.0.0.1", 0, lambda url: print(url, flush=True))
os._exit(0)  # as the program does
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            assert process.stderr
            url = process.stdout.readline().strip()
            with httpx.stream(
                "POST", f"{url}/v1/completions", json={**ENDLESS, "stream": True}, timeout=5
            ) as answer:
                lines = answer.iter_lines()
                assert next(lines).startswith("data: ")
                process.send_signal(signal.SIGTERM)
                started = time.monotonic()
                with pytest.raises(httpx.RemoteProtocolError):
                    list(lines)
            assert process.wait(5) == 0
            assert 0.3 < time.monotonic() - started < 4
            assert (process.stdout.read(), process.stderr.read()) == ("", "")
        finally:
            process.kill()
