from __future__ import annotations

import time
from typing import Any

import pytest

from shoal.data.template import MAX_TEMPLATE_BYTES, ChatTemplate, TemplateRefusal
from shoal.errors import ShoalError


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source).render(variables, seconds=1.0)


def test_what_templates_need() -> None:
    messages = [{"role": "user", "content": " 日本 "}, {"role": "assistant", "content": "r</think>a"}]
    source = """{% set ns = namespace(last='') %}
{%- for m in messages if m.role != 'system' -%}
{%- if loop.index0 == 5 %}{% break %}{% endif -%}
{%- generation %}{{ m['content'] | trim }}{% endgeneration -%}
{{ m.content.split('</think>')[-1] ~ ';' }}{% set ns.last = m.role -%}
{%- endfor %}{{ ns.last | upper }} {{ {"a": "<é>"} | tojson }} {{ messages | length }} {{ 3 + 4 * 2 }}"""
    assert render(source, messages=messages) == '日本 日本 ;r</think>aa;ASSISTANT {"a": "<é>"} 2 11'
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10


def test_refusal_carries_the_templates_sentence() -> None:
    """C26."""
    with pytest.raises(TemplateRefusal, match="No system messages, please"):
        render("{{ raise_exception('No system messages, please') }}")


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages|map(attribute='__class__')|list }}{{ messages[0].__class__.__name__ }}",
        "{{ namespace.__init__.__globals__['__builtins__'] }}",
        "{{ range.__class__.__base__ }}",
        "{{ ('{0.__class__}').format(messages) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ messages | attr('append') }}",
        "{{ strftime_now('%1000000000Y') }}",
        "{{ 'a'.encode('utf-16') }}",
    ],
)
def test_attacks_are_errors(attack: str) -> None:
    messages: list[Any] = ["x"]
    with pytest.raises(ShoalError):
        render(attack, messages=messages)
    assert messages == ["x"]


@pytest.mark.parametrize(
    "look", ["{{ messages.__class__ }}", "{{ raise_exception.__globals__ }}", "{{ cycler }}"]
)
def test_hidden_things_are_not_there(look: str) -> None:
    assert render(look, messages=[]) == ""


@pytest.mark.parametrize(
    "bomb",
    [
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = ns.s|replace('a', ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = ns.s.join([ns.s,ns.s]) %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'a'.center(1000000000) }}",
        "{{ 'a' | indent(1000000000) }}",
        "{{ 10 ** 10000000 }}",
        "{% for i in range(10000000000) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    ],
)
def test_bombs_end_at_once(bomb: str) -> None:
    start = time.monotonic()
    with pytest.raises(ShoalError, match="chat template"):
        render(bomb)
    assert time.monotonic() - start < 5


def test_time_runs_out_and_the_thread_ends() -> None:
    import threading

    with pytest.raises(ShoalError, match=r"more than 0\.2 s"):
        ChatTemplate("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}").render(
            {}, seconds=0.2
        )
    deadline = time.monotonic() + 5
    while (
        any(thread.name == "chat-template" for thread in threading.enumerate())
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    assert not any(thread.name == "chat-template" for thread in threading.enumerate())


@pytest.mark.parametrize("source", ["{% if", "{{ x | nonsense }}", "{% break %}", "{{ '" + "(" * 50])
def test_no_jinja(source: str) -> None:
    with pytest.raises(ShoalError, match="broken"):
        ChatTemplate(source)


def test_too_long() -> None:
    with pytest.raises(ShoalError, match="64 KB"):
        ChatTemplate("x" * (MAX_TEMPLATE_BYTES + 1))


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(ShoalError, match="'tools'"):
        render("{{ tools.first.second }}")
