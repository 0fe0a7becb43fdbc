"""Other people's clients, unchanged, against our server: LangChain's two, litellm. They are no dependencies of ours:
`pip install shoal[clients]` brings them."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SCHEMA = {
    "title": "place",
    "description": "A city.",
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Kobe", "大阪"]}},
    "required": ["city"],
    "additionalProperties": False,
}
PLAIN: dict[str, Any] = {"thinking": {"type": "disabled"}}
TURNS = [("system", "Be brief."), ("human", "Who are you?")]


def test_langchain_openai(live_server: str) -> None:
    lc = pytest.importorskip("langchain_openai")
    model = lc.ChatOpenAI(
        model="tiny", base_url=f"{live_server}/v1", api_key="none", max_tokens=12, temperature=0, extra_body=PLAIN,
        max_retries=0, stream_usage=True,
    )  # fmt: skip
    plain = model.invoke(TURNS)
    assert plain.content and plain.usage_metadata["output_tokens"] > 0
    chunks = list(model.stream(TURNS))
    assert "".join(chunk.content for chunk in chunks) == plain.content
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0
    longer = model.model_copy(update={"max_tokens": 200})
    for method in ("json_schema", "function_calling"):
        found = longer.with_structured_output(SCHEMA, method=method).invoke(TURNS)
        assert found["city"] in ("Kobe", "大阪"), method
    called = longer.bind_tools([SCHEMA], tool_choice="place").invoke(TURNS)
    assert called.tool_calls[0]["name"] == "place" and called.tool_calls[0]["args"]["city"] in (
        "Kobe",
        "大阪",
    )
    answered = [
        *TURNS,
        called,
        {"role": "tool", "tool_call_id": called.tool_calls[0]["id"], "content": "sunny"},
    ]
    assert model.bind_tools([SCHEMA]).invoke(answered).usage_metadata["input_tokens"] > 0
    responses = lc.ChatOpenAI(
        model="tiny", base_url=f"{live_server}/v1", api_key="none", use_responses_api=True, max_tokens=12,
        temperature=0, reasoning={"effort": "none"}, max_retries=0,
    )  # fmt: skip
    assert responses.invoke(TURNS).text == plain.content
    assert "".join(chunk.text for chunk in responses.stream(TURNS)) == plain.content
    vectors = lc.OpenAIEmbeddings(
        model="tiny", base_url=f"{live_server}/v1", api_key="none", check_embedding_ctx_length=False
    )
    assert len(vectors.embed_query("The sea")) == 64


def test_langchain_deepseek(live_server: str) -> None:
    """Reasoning arrives where this client looks for it, streamed and plain, and DeepSeek's cache counts are read."""
    lc = pytest.importorskip("langchain_deepseek")
    model = lc.ChatDeepSeek(
        model="tiny", api_base=f"{live_server}/v1", api_key="none", max_tokens=400, temperature=1, max_retries=0,
        extra_body={"reasoning_effort": "low", "seed": 4},
    )  # fmt: skip
    plain = model.invoke(TURNS)
    assert plain.additional_kwargs["reasoning_content"]
    chunks = list(model.stream(TURNS))
    thought = "".join(chunk.additional_kwargs.get("reasoning_content", "") for chunk in chunks)
    assert thought == plain.additional_kwargs["reasoning_content"]
    assert "".join(chunk.content for chunk in chunks) == plain.content
    quiet = model.model_copy(update={"extra_body": PLAIN})
    called = quiet.bind_tools([SCHEMA], tool_choice="place", strict=True).invoke(TURNS)
    assert called.tool_calls[0]["args"]["city"] in ("Kobe", "大阪")


def test_litellm(live_server: str) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask a server of its own
    litellm = pytest.importorskip("litellm")
    messages = [{"role": "user", "content": "Who are you?"}]
    options: dict[str, Any] = {"messages": messages, "max_tokens": 12, "temperature": 0, "num_retries": 0,
                               "api_key": "none"}  # fmt: skip
    for provider, base in (("openai", f"{live_server}/v1"), ("deepseek", f"{live_server}/beta")):
        plain = litellm.completion(f"{provider}/tiny", api_base=base, extra_body=PLAIN, **options)
        chunks = list(
            litellm.completion(f"{provider}/tiny", api_base=base, extra_body=PLAIN, stream=True, **options)
        )
        text = plain.choices[0].message.content
        assert text and "".join(c.choices[0].delta.content or "" for c in chunks) == text
    thinking = litellm.completion(
        "deepseek/tiny",
        api_base=f"{live_server}/beta",
        **options | {"max_tokens": 5, "extra_body": {"think": True}},
    )
    assert thinking.choices[0].message.reasoning_content
    shape = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    shaped = litellm.completion(
        "openai/tiny",
        api_base=f"{live_server}/v1",
        response_format=shape,
        extra_body=PLAIN,
        **options | {"max_tokens": 90},
    )
    assert json.loads(shaped.choices[0].message.content)["city"] in ("Kobe", "大阪")
    tool = {"type": "function", "function": {"name": "place", "parameters": SCHEMA}}
    called = litellm.completion(
        "openai/tiny", api_base=f"{live_server}/v1", tools=[tool], tool_choice="required", extra_body=PLAIN,
        **options | {"max_tokens": 90},
    )  # fmt: skip
    assert json.loads(called.choices[0].message.tool_calls[0].function.arguments)["city"] in ("Kobe", "大阪")
    anthropic = litellm.completion("anthropic/tiny", api_base=live_server, **options)
    assert anthropic.choices[0].message.content
    assert (
        len(
            litellm.embedding(
                "openai/tiny", input=["The sea"], api_base=f"{live_server}/v1", api_key="none"
            ).data
        )
        == 1
    )
    with pytest.raises(litellm.exceptions.NotFoundError):
        litellm.completion("openai/nope", api_base=f"{live_server}/v1", **options)
