"""Chat templates, against transformers' own rendering, and those that loop, raise or fill the memory."""

import time
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from trt_compress.chat_template import Renderer
from trt_compress.errors import BundleError, ConfigError

USER: dict[str, Any] = {"role": "user", "content": '  What\'s 2 < 3 & "é"?\n'}
TALK = [{"role": "system", "content": "Be brief. "}, USER, {"role": "assistant", "content": " Yes.\n"}, USER]
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"zone": {"type": "string"}}, "é": "<b>"}}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
FAMILIES = {
    "Llama 3": """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + "Year: " + strftime_now("%Y") + "\\n" }}
{%- if tools is not none %}{% for tool in tools %}{{- tool | tojson(indent=4) }}{{- "\\n\\n" }}{% endfor %}{% endif %}
{{- system + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
""",
    "Mistral": """{{ bos_token }}{% set ns = namespace(turn=0) %}
{% for message in messages if message.role != 'system' %}
{% if (message.role == 'user') != (ns.turn % 2 == 0) %}{{ raise_exception('Roles have to alternate') }}{% endif %}
{% if message.role == 'user' %} [INST] {{ message.content }} [/INST]{% else %} {{ message.content }}{{ eos_token }}
{%- endif %}{% set ns.turn = ns.turn + 1 %}
{% endfor %}""",
    "Qwen 2.5": """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "system" %}{%- continue %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
""",
    "Phi-3": """{% for message in messages %}
{% if message['role'] in ['user', 'system'] %}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}
{% else %}
{{ '<|assistant|>\\n' }}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}

{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "Gemma": """{{ bos_token }}{% for message in messages[-1:] %}{% set role = 'model' if message['role'] == 'assistant'
 else message['role'] %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}""",
    "ChatML": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\\nHelp.<|im_end|>\\n' }}{% endif %}
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
{{ {"é": [1, 2.5, none], "<": messages | length} | tojson }}{{ messages | map(attribute='role') | join(',') }}""",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_templates_give_what_transformers_gives(family: str) -> None:
    renderer = Renderer(FAMILIES[family], "The template")
    for messages in (TALK, TALK[1:2], TALK[1:3]):
        for tools in (None, TOOLS):
            for asks in (True, False):
                given: dict[str, Any] = {"tools": tools, "documents": None, "add_generation_prompt": asks, **SPECIAL}
                ((wanted,), _) = render_jinja_template([messages], chat_template=FAMILIES[family], **given)
                assert renderer.render({**given, "messages": messages}) == wanted
    renderer.close()


def test_a_template_that_refuses() -> None:
    renderer = Renderer(FAMILIES["Mistral"], "The template of 'b'")
    with pytest.raises(ConfigError, match=r"^The template of 'b' refuses the conversation: Roles have to alternate\.$"):
        renderer.render({"messages": [USER, USER], **SPECIAL})
    assert "[INST]" in renderer.render({"messages": [USER], **SPECIAL})  # it still works
    renderer.close()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "it takes longer than 1 s"),
        ("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "it writes more than 16777216 characters"),
        ("{{ 'x' * 99999999999 }}", "MemoryError"),
        ("{{ 10 ** (10 ** 9) }}", "it takes longer than 1 s"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{% for", "[Ee]xpected"),
        ("{% include 'x' %}", "."),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ raise_exception.__globals__.a }}", "unsafe"),
    ],
)
def test_templates_that_are_at_fault(template: str, said: str) -> None:
    renderer = Renderer(template, "The template", seconds=1)
    began = time.monotonic()
    with pytest.raises(BundleError, match=rf"^The template is at fault \(.*{said}.*\); give the prompt as"):
        renderer.render({"messages": [USER]})
    assert time.monotonic() - began < 30
    renderer.close()


def test_conversations_that_are_no_data() -> None:
    renderer = Renderer("", "The template")
    with pytest.raises(ConfigError, match="no plain JSON data"):
        renderer.render({"messages": [object()]})
    with pytest.raises(ConfigError, match=r"The conversation has \d+ bytes; it may have 16777216"):
        renderer.render({"messages": "x" * (1 << 24)})
    renderer.close()


def test_a_process_that_was_ended_is_started_again() -> None:
    renderer = Renderer("{{ a }}", "The template")
    assert renderer.render({"a": 1}) == "1"
    assert renderer._process is not None
    renderer._process.kill()
    renderer._process.wait()
    assert renderer.render({"a": "é\n"}) == "é\n"
    renderer.close()
