"""GGUF file -> OpenVINO IR folder, without torch."""
