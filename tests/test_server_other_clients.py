"""The server with clients that need packages of their own, on the default pair. Each is skipped where it is absent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgespec.pipeline import Pipeline
from tests.conftest import FRANCE
from tests.fake_server import on_a_port, service_of

pytestmark = [pytest.mark.slow, pytest.mark.real]
ABSENT = "it is not installed: pip install edgespec[clients]"


@pytest.fixture(scope="module")
def url(pipeline: Pipeline) -> Iterator[str]:
    with on_a_port(service_of(pipeline)) as url:
        yield url


def test_litellm(url: str, pipeline: Pipeline, paris: str) -> None:
    litellm = pytest.importorskip("litellm", reason=ABSENT)
    for provider, base in (("openai", f"{url}/v1"), ("ollama_chat", url)):
        options = {
            "model": f"{provider}/{pipeline.bundle.name}",
            "api_base": base,
            "api_key": "none",
            "messages": FRANCE,
            "max_tokens": 40,
        }
        assert litellm.completion(**options).choices[0].message.content == paris
        parts = list(litellm.completion(stream=True, **options))
        assert "".join(part.choices[0].delta.content or "" for part in parts) == paris
        with pytest.raises((litellm.exceptions.APIError, litellm.exceptions.BadRequestError)):
            litellm.completion(**options | {"temperature": -1}, num_retries=0)


def test_llm(url: str, pipeline: Pipeline, paris: str, tmp_path: Path) -> None:
    pytest.importorskip("llm", reason=ABSENT)
    known = [{"model_id": "here", "model_name": pipeline.bundle.name, "api_base": f"{url}/v1", "api_key_name": "none"}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(known), encoding="utf-8")
    (tmp_path / "keys.json").write_text('{"none": "none"}', encoding="utf-8")
    for stream in ([], ["--no-stream"]):
        ran = subprocess.run(
            [sys.executable, "-m", "llm", "-m", "here", "-o", "max_tokens", "40", *stream, FRANCE[0]["content"]],
            env=os.environ | {"LLM_USER_PATH": str(tmp_path)},
            capture_output=True,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
        )
        assert ran.stdout.strip() == paris.strip(), ran.stderr


NODE = """
import OpenAI from "openai";
import { Ollama } from "ollama";
const [url, model] = process.argv.slice(2);
const messages = [{ role: "user", content: "What is the capital of France?" }];
const found = {};
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
found.whole = (await client.chat.completions.create({ model, messages, max_tokens: 40 })).choices[0].message.content;
found.stream = "";
for await (const part of await client.chat.completions.create({ model, messages, max_tokens: 40, stream: true }))
  found.stream += part.choices[0].delta.content ?? "";
const response = await client.responses.create({ model, input: messages[0].content, max_output_tokens: 40 });
found.response = response.output_text;
found.events = "";
const asked = { model, input: messages, max_output_tokens: 40 };
for await (const event of await client.responses.create({ ...asked, stream: true }))
  if (event.type === "response.output_text.delta") found.events += event.delta;
const probs = { logprobs: true, top_logprobs: 2 };
const scored = await client.chat.completions.create({ model, messages, max_tokens: 4, ...probs });
found.scored = scored.choices[0].logprobs.content.length;
try { await client.models.retrieve("gpt-9"); } catch (error) { found.refused = error.code; }
const ollama = new Ollama({ host: url });
const options = { num_predict: 40 };
found.chat = (await ollama.chat({ model, messages, options })).message.content;
found.lines = "";
for await (const part of await ollama.chat({ model, messages, options, stream: true }))
  found.lines += part.message.content;
found.models = (await ollama.list()).models.map((each) => each.name);
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    ran = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "openai", "ollama"], cwd=folder, capture_output=True
    )
    if ran.returncode:
        pytest.skip("npm cannot fetch openai and ollama")
    (folder / "ask.js").write_text(NODE, encoding="utf-8")
    return folder


def test_clients_for_node(url: str, pipeline: Pipeline, paris: str, node_folder: Path) -> None:
    ran = subprocess.run(
        ["node", "ask.js", url, pipeline.bundle.name],
        cwd=node_folder,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    texts = ("whole", "stream", "response", "events", "chat", "lines")
    assert {name: found[name] for name in texts} == dict.fromkeys(texts, paris)
    assert found["scored"] == 4 and found["refused"] == "model_not_found"
    assert found["models"] == [pipeline.bundle.name]
