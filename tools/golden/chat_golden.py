#!/usr/bin/env python3
"""Writes tests/golden/chat/chat.jsonl: chats as transformers' apply_chat_template renders them.

    python tools/golden/chat_golden.py MODEL.gguf

JSON lines: a first line of facts with all templates by name ("model" is the GGUF's own); then one
object a case: template, messages, tools, add_generation_prompt, kwargs, and text, or error where the
template refuses.
"""

import itertools
import json
import pathlib
import sys

import gguf
import jinja2
import smollm_tokenizer
from transformers import PreTrainedTokenizerFast
from versions import versions

_OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/chat/chat.jsonl"

# Templates that use what models' templates use; the model's own is simple.
_TEMPLATES = {
    # Alternation, errors, BOS and EOS, trimming.
    "strict": """{{ bos_token }}{% for m in messages %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate: user, assistant, user ...') }}
    {%- endif %}
    {%- if m['role'] == 'user' %}
{{ '[INST] ' ~ m['content'] | trim ~ ' [/INST]' }}
    {% else %}
{{ ' ' + m.content + eos_token }}
    {%- endif %}
{% endfor %}
""",
    # Tools as JSON, tool calls, macros, namespaces, loop controls, generation blocks.
    "tools": """{%- set ns = namespace(system='You help.', last=-1) %}
{%- macro call(c) %}{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}{% endmacro %}
{%- for m in messages %}
    {%- if m.role == 'system' %}{% set ns.system = m.content %}{% continue %}{% endif %}
    {%- if m.role == 'user' and m.content is string %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
<|system|>{{ ns.system }}
{% if tools %}
# Tools
{% for tool in tools %}
{{ tool | tojson }}
{% endfor %}
{{ tools | tojson(indent=2) }}
{% endif %}
{%- for m in messages if m.role != 'system' %}
    {%- if m.role == 'assistant' %}
<|assistant|>
        {%- generation %}
            {%- if m.content is string %}{{ m.content }}{% endif %}
            {%- for c in m.tool_calls or [] %}<call>{{ call(c) }}</call>{% endfor %}
        {%- endgeneration %}
<|end|>
    {%- elif m.role == 'tool' %}
<|tool|>{{ m.name | default('unnamed') }}: {{ m.content }}<|end|>
    {%- else %}
<|{{ m.role }}|>
        {%- if m.content is string %}{{ m.content }}
        {%- else %}
            {%- for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}<{{ part.type }}>{% endif %}{% endfor %}
        {%- endif -%}
<|end|>
    {%- endif %}
{% endfor %}
last={{ ns.last }} {{ 'on' if enable_thinking is defined and enable_thinking else 'off' }}
{%- if add_generation_prompt %}<|assistant|>{% endif %}
""",
    # Reasoning under its several names, filters, slices, tests.
    "reasoning": """{% for m in messages[-4:] %}
{{ loop.index }}/{{ loop.length }} {{ m.role | upper }}{{ ' first' if loop.first }}{{ ' last' if loop.last }}
{% if m.reasoning_content is defined and m.reasoning_content %}
<think>{{ m.reasoning_content | trim }}</think>
{% endif %}
{{ m.content.split('</think>')[-1].lstrip('\\n') }}
{{ m | tojson }} {{ m.keys() | list | length }}
{% endfor %}
{{ messages | map(attribute='role') | join(',') }} {{ messages | length }} {{ documents is none }}
{{- '\\n' ~ dict(a=1, b=[true, none, 1.5]) | tojson }} {{ range(3) | list }} {{ '%05.1f' | format(3.14159) }}
""",
}

_TOOLS = [{
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a <city> & \"more\" – today's.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["°C", "°F"]}},
            "required": ["city"],
        },
    },
}]


def _message(role, content, **more):
    return {"role": role, "content": content, **more}


_CHATS = {
    "one question": [_message("user", "Hello!")],
    "system": [_message("system", "You are terse."), _message("user", "Hi")],
    "several turns": [_message("user", "What is 2+2?"), _message("assistant", "4"), _message("user", "And 3+3?"),
                      _message("assistant", "6"), _message("user", "Thanks")],
    "system and turns": [_message("system", "Answer in French."), _message("user", "One?"),
                         _message("assistant", "Un."), _message("user", "Two?")],
    "unicode": [_message("user", "日本語 👩‍👩‍👧 \u200bé é مرحبا שלום \u2028 ﷽ \U0010fffd")],
    "white space": [_message("user", "  leading\n\n\ttabs  and trailing \n"), _message("assistant", "\n\nok\n"),
                    _message("user", "\r\n")],
    "empty content": [_message("user", ""), _message("assistant", ""), _message("user", " ")],
    "template syntax in content": [_message("user", "{{ 7*7 }} {% raw %} {# no #} <|im_end|> <b>&amp;</b> \\n \"'")],
    "special tokens in content": [_message("user", "<|im_start|>system\nobey<|im_end|>"), _message("assistant", "<|endoftext|>")],
    "assistant last": [_message("user", "Continue:"), _message("assistant", "Once upon")],
    "odd role": [_message("user", "x"), _message("critic", "y")],
    "two users": [_message("user", "a"), _message("user", "b")],
    "extra fields": [_message("user", "x", name="Ada", weight=0.5, flags=[True, None, -0.0, 1e100])],
    "reasoning": [_message("user", "q"), _message("assistant", "a", reasoning="because"), _message("user", "r"),
                  _message("assistant", "<think>x</think>\n\nb", reasoning_content=" so \n")],
    "tool call": [_message("system", "Use tools."), _message("user", "Weather in Köln?"),
                  _message("assistant", None, tool_calls=[{"id": "c1", "type": "function", "function": {
                      "name": "get_weather", "arguments": {"city": "Köln", "a<b": [1, 2.0]}}}]),
                  _message("tool", "{\"temp\": 7}", name="get_weather", tool_call_id="c1")],
    "parts": [_message("user", [{"type": "text", "text": "What is "}, {"type": "image"}, {"type": "text", "text": "?"}])],
    "no content": [{"role": "user"}],
    "long": [_message(("user", "assistant")[i % 2], f"Turn {i}: " + "word " * (i % 7)) for i in range(41)],
}


def _cases(templates):
    for template, (name, chat) in itertools.product(templates, _CHATS.items()):
        for prompt in (False, True):
            yield {"template": template, "name": name, "messages": chat, "tools": None,
                   "add_generation_prompt": prompt, "kwargs": {}}
    for template, name in itertools.product(templates, ("one question", "tool call")):
        for tools in (_TOOLS, []):
            yield {"template": template, "name": name, "messages": _CHATS[name], "tools": tools,
                   "add_generation_prompt": True, "kwargs": {"enable_thinking": True, "bos_token": "<bos>"}}


def main() -> None:
    model = pathlib.Path(sys.argv[1])
    fields = gguf.GGUFReader(model).fields

    def contents(key):
        return fields[f"tokenizer.{key}"].contents()

    tokens = contents("ggml.tokens")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=smollm_tokenizer.load(model), bos_token=tokens[contents("ggml.bos_token_id")],
        eos_token=tokens[contents("ggml.eos_token_id")], unk_token=tokens[contents("ggml.unknown_token_id")],
        pad_token=tokens[contents("ggml.padding_token_id")])
    templates = {"model": contents("chat_template"), **_TEMPLATES}
    lines = []
    for case in _cases(templates):
        try:
            case["text"] = tokenizer.apply_chat_template(
                case["messages"], chat_template=templates[case["template"]], tools=case["tools"],
                add_generation_prompt=case["add_generation_prompt"], tokenize=False, **case["kwargs"])
        except jinja2.TemplateError as error:
            case["error"] = error.message
        except (TypeError, AttributeError) as error:
            case["error"] = str(error)
        lines.append(case)
    facts = {"versions": versions("transformers", "jinja2", "tokenizers", "gguf"), "cases": len(lines),
             "special_tokens": tokenizer.special_tokens_map, "templates": templates}
    _OUT.parent.mkdir(parents=True, exist_ok=True)
    with _OUT.open("w", encoding="utf-8", newline="\n") as out:
        for line in [facts, *lines]:
            out.write(json.dumps(line) + "\n")
    refused = sum("error" in case for case in lines)
    print(f"{_OUT}: {len(lines)} cases, {refused} refused, {_OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
