"""A local server that clients of OpenAI, Ollama and llama.cpp can talk to. See docs/server.md."""
