"""The routes as an OpenAPI document. Bodies come from the structs that read them."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.routing import Route

from edgespec.server import llama_cpp, llama_cpp_models, ollama, ollama_models, openai, openai_shapes, wire
from edgespec.server.app import routes_of
from edgespec.server.openai_responses import ResponsesRequest
from edgespec.server.residents import Residents
from edgespec.server.service import Service

BODIES: dict[str, type[msgspec.Struct]] = {
    "/v1/chat/completions": openai_shapes.ChatRequest,
    "/v1/completions": openai_shapes.CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/api/chat": ollama.ChatRequest,
    "/api/generate": ollama.GenerateRequest,
    "/api/show": ollama_models.NameRequest,
    "/api/pull": ollama_models.NameRequest,
    "/api/delete": ollama_models.NameRequest,
    "/infill": llama_cpp.InfillRequest,
    "/completion": llama_cpp.CompletionRequest,
    "/completions": llama_cpp.CompletionRequest,
    "/slots/{number}": llama_cpp_models.SlotRequest,
    "/tokenize": llama_cpp_models.TokenizeRequest,
    "/detokenize": llama_cpp_models.DetokenizeRequest,
    "/apply-template": llama_cpp_models.TemplateRequest,
}
"""path -> what reads the body of its requests"""
SUMMARIES = {
    "/": "The chat page",
    "/health": "200 once the models are loaded, 503 before",
    "/metrics": "Counts and times for Prometheus",
    "/shutdown": "A graceful stop, for who has the token of server.json",
    "/v1/models": "The models, with their context",
    "/v1/models/{name}": "One of them",
    "/v1/chat/completions": "Answer a conversation",
    "/v1/completions": "Continue a text, or fill a hole (suffix)",
    "/v1/responses": "Answer a text or a conversation; no answer is kept",
    "/api/version": "The version of Ollama whose routes these are",
    "/api/tags": "The models",
    "/api/ps": "The loaded models",
    "/api/show": "What a model can do",
    "/api/generate": "Answer or continue a prompt, or fill a hole (suffix); without one, load or unload the model",
    "/api/chat": "Answer a conversation; without one, load or unload the model",
    "/api/pull": "Fetch a model by its short name",
    "/api/delete": "Not supported (501): files stay",
    "/infill": "Fill a hole, as editors ask",
    "/completion": "Continue a text",
    "/completions": "Continue a text",
    "/tokenize": "The tokens of a text",
    "/detokenize": "The text of tokens",
    "/apply-template": "The prompt of a conversation",
    "/props": "Context and chat template of a model",
    "/slots": "What the loaded models do",
    "/slots/{number}": "Save, restore or erase a slot",
}
_REFUSED = "Not supported (501)"
NOT_OFFERED = {
    *(f"/api/{name}" for name in ollama_models.NOT_OFFERED),
    *(f"/v1/{name}" for name in openai.NOT_OFFERED),
    *llama_cpp.NOT_OFFERED,
}


def operations() -> list[tuple[str, str, str]]:
    """Method, path and summary of each route, but for aliases of paths."""
    found = []
    for route in routes_of(Service(Residents({}))):
        assert isinstance(route, Route)
        path = route.path.replace(":path}", "}")
        if path.startswith("/v3/") or path == "/v1/health":
            continue
        summary = _REFUSED if path in NOT_OFFERED else SUMMARIES[path]
        found += [(method, path, summary) for method in sorted((route.methods or set()) - {"HEAD"})]
    return found


def document(version: str) -> dict[str, Any]:
    """The whole document. version: of edgespec."""
    kinds = list(dict.fromkeys(BODIES.values()))
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    components["NameRequest"]["anyOf"] = [
        {"required": [name], "properties": {name: {"type": "string"}}} for name in ("model", "name")
    ]
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary in operations():
        operation: dict[str, Any] = {"summary": summary, "responses": _responses(path)}
        if parameters := _parameters(path):
            operation["parameters"] = parameters
        if path in BODIES:
            content = {"application/json": {"schema": by_kind[BODIES[path]]}}
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgespec", "version": version, "description": "See docs/server.md."},
        "servers": [{"url": "http://127.0.0.1:8012"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _parameters(path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    found = [_parameter(name, "path", {"type": "integer" if name == "number" else "string"}) for name in names]
    if path == "/slots/{number}":
        found.append(_parameter("action", "query", {"enum": list(llama_cpp_models.SLOT_ACTIONS)}))
    return found


def _parameter(name: str, place: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": True, "schema": schema}


def _responses(path: str) -> dict[str, Any]:
    is_ollama = path.startswith("/api/")
    types = ["text/plain"] if path in ("/", "/metrics") else ["application/json"]
    if any(field.name == "stream" for field in msgspec.structs.fields(BODIES.get(path, llama_cpp_models.SlotRequest))):
        types.append(wire.NDJSON if is_ollama else wire.SSE)
    kind = "ollama" if is_ollama else "llama.cpp" if path.startswith(llama_cpp.PATHS) else "openai"
    error = {"content": {"application/json": {"schema": _ERRORS[kind]}}}
    found = (
        {"200": {"description": "The answer", "content": {each: {} for each in types}}}
        if path not in NOT_OFFERED
        else {}
    )
    return found | {
        "4XX": {"description": "What is wrong with the request"} | error,
        "5XX": {"description": "Why the server does not answer"} | error,
    }


def _error(**fields: Any) -> dict[str, Any]:
    inner = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "object", "properties": {"error": inner}, "required": ["error"]}


_TEXT, _MAYBE_TEXT = {"type": "string"}, {"type": ["string", "null"]}
_ERRORS = {
    "openai": _error(message=_TEXT, type=_TEXT, param=_MAYBE_TEXT, code=_MAYBE_TEXT),
    "llama.cpp": _error(message=_TEXT, type=_TEXT, code={"type": "integer"}),
    "ollama": {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]},
}
