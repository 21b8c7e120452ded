"""Chat templates in the manner of the ones in use, as transformers renders them."""

import datetime

import jinja2
from transformers.utils import chat_template_utils

from golden_common import write_json

NOW = datetime.datetime(2024, 7, 26, 12, 34, 56)
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

# Written for this test; each has the features that templates of its family lean on.
TEMPLATES = {
    # A default system prompt at the first turn (SmolLM2's manner).
    "chatml-default": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou answer briefly.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    # Slices, set in loops, alternation enforced, strip (Llama 2's manner).
    "llama2": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    # Headers, a date from the clock, variables with defaults, whitespace control (Llama 3's manner).
    "llama3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # Tools by tojson, tool calls, namespaces, consecutive tool answers (Qwen 2.5's manner).
    "qwen-tools": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nSignatures within <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    # Reversed messages, namespaces, string methods, split, enable_thinking (Qwen 3's manner).
    "qwen-think": """{%- set ns = namespace(searching=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    # Newlines of the template itself, eos_token, loop.last (Zephyr's manner).
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
""",
    # selectattr, list, ns counters, several exceptions (Mistral's manner).
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if message["role"] in ["user", "assistant"] %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if message == user_messages[-1] and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, got " + message["role"] + "!") }}
    {%- endif %}
{%- endfor %}
""",
    # A role renamed, conditional expressions (Gemma's manner).
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}""",
    # Generation marks, as training with assistant masks wants them.
    "generation-marks": """{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    # Macros, loop controls, dictionary methods, tojson's keywords, numbers.
    "oddities": """{%- macro turn(role, content) -%}
<{{ role|upper }}>{{ content }}</{{ role|upper }}>
{%- endmacro -%}
{%- for message in messages -%}
{%- if loop.index > 4 %}{% break %}{% endif -%}
{%- if not message.get('content') %}{% continue %}{% endif -%}
{{ turn(message.role, message['content']|replace('a', 'A')) }}
{{ loop.index }}/{{ messages|length }} {{ message.items()|list|length }} {{ message.content.title()[:12] }} {{ '%s-%03d'|format(message.role, loop.index0) }}
{%- endfor %}
{{ {'z': 1, 'a': [1, 2.5, none, true], 'é': '<&>"'}|tojson }}
{{ {'b': {'c': []}, 'd': {}}|tojson(indent=2) }}
{{ messages|map(attribute='role')|join(',') }} {{ messages[-1].role == 'user' and 'asks' or 'ends' }} {{ (7 / 2) }} {{ 7 // 2 }} {{ 2 ** 5 }} {{ none }} {{ true }} {{ 'x' ~ 1 }}
{% if add_generation_prompt %}>{% endif %}""",
}

TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather's <state> & \"feel\" – été",
     "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 3}},
                    "required": ["place"]}}},
    {"type": "function", "function": {"name": "noop", "parameters": {"type": "object", "properties": {}}}},
]


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


CONVERSATIONS = [
    [user("Hello there")],
    [user("  padded \n")],
    [system("Be terse."), user("Why?")],
    [user("a"), answer("b"), user("c")],
    [system("Sé breve — \"ok\" <b>&amp;</b>"), user("日本 🙂"), answer(" an answer \n"), user("{{ x }} {% y %}")],
    [user("")],
    [user("one"), answer("")],
    [user("q"), answer("<think>\nhm\n</think>\n\nyes"), user("r"), answer("<think>so</think>no")],
    [user("q"), answer("plain", reasoning_content="because\n")],
    [system(""), user("x\ny\n\nz"), answer("line\n\n"), user("'single' and \"double\" \\ back")],
    [user("two"), user("in a row")],
    [answer("first")],
    [user("u"), system("late system")],
]
TOOL_CONVERSATIONS = [
    [user("Weather in Oslo?")],
    [system("Use tools."), user("Weather?"),
     answer("", tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": {"place": "Århus <1>", "days": 2}}}]),
     {"role": "tool", "content": "{\"sky\": \"grey\"}"}, {"role": "tool", "content": "12"}, answer("Grey, 12."), user("thanks")],
]


def render(name, template, messages, tools, generation):
    case = {"template": name, "messages": messages, "tools": tools, "add_generation_prompt": generation}
    try:
        # The template is given as it is; special tokens as a tokenizer passes them.
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[messages], chat_template=template, tools=tools,
            add_generation_prompt=generation, **SPECIALS)
        case["text"] = rendered[0]
    except (jinja2.exceptions.TemplateError, TypeError) as error:
        case["error"] = str(error)
    return case


class FixedDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def make():
    chat_template_utils.datetime = FixedDatetime
    cases = []
    for name, template in TEMPLATES.items():
        for messages in CONVERSATIONS:
            for generation in (False, True):
                cases.append(render(name, template, messages, None, generation))
        if name == "qwen-tools":
            for messages in TOOL_CONVERSATIONS:
                for generation in (False, True):
                    cases.append(render(name, template, messages, TOOLS, generation))
    write_json("templates.json", {
        "now": NOW.isoformat(),
        "templates": [{"name": name, "template": template, "variables": SPECIALS}
                      for name, template in TEMPLATES.items()],
        "cases": cases})
