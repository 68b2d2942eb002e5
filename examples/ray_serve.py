"""Two copies of the server behind one address. On a cluster, Ray puts them on its machines.

python examples/ray_serve.py

It needs Ray Serve: pip install ".[ray]"
"""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from ray import serve

from edgespec.server.ray_serve import deployment

serve.run(deployment(["default"], replicas=2), route_prefix="/")


def ask(question: str) -> str:
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 32}
    request = urllib.request.Request("http://127.0.0.1:8000/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


with ThreadPoolExecutor(4) as clients:
    for text in clients.map(ask, ["What is the capital of France?"] * 4):
        print(text)
print(f"{serve.status().applications['default'].deployments['edgespec'].replica_states['RUNNING']} copies")
serve.shutdown()
