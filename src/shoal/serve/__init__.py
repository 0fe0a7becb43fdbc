"""HTTP: the OpenAI / DeepSeek API, the chat page and its store."""
