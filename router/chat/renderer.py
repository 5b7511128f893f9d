"""Renders chat templates as Hugging Face transformers does. Runs inside the router (chat_template.cc).

Templates come with models, from strangers: they run in Jinja's sandbox and see plain JSON data alone.
"""

import datetime
import json
import sys

# The router speaks to Debian's packages only (or a bundle's copy), whatever else was installed by hand.
sys.path[:] = [path for path in sys.path
               if path.startswith(sys.prefix + "/") and not path.startswith(sys.prefix + "/local/")]

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils


class TimeLimit(BaseException):
    """Raised in a rendering thread from outside (watchdog.cc). No template code can catch it."""


class _TooLong(Exception):
    pass


class _Generation(jinja2.ext.Extension):
    """{% generation %} marks what the model wrote, for training: here its body is rendered as it is.

    As a call block, since that is what gives its variables the scope they have in transformers.
    """

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace() without access to Python's internals by way of __names__."""

    def __init__(*args, **kwargs):  # no named self: namespace(self=1) is allowed
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name, value):
        _refuse_private(name)
        super().__setitem__(name, value)


class _Dict:
    """dict() as templates know it, without the type behind it."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)


def _refuse_private(name):
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace can't hold the private name {name!r}")


def _raise_exception(message):
    raise jinja2.TemplateError(message)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # Jinja's own filter escapes for HTML, which models were not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def _strftime_now(pattern):
    return datetime.datetime.now().strftime(pattern)


def _environment():
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now,
                               namespace=_Namespace, dict=_Dict())
    return environment


def _describe(error):
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, jinja2.TemplateError):
        return error.message or type(error).__name__
    if isinstance(error, RecursionError):
        return "it recurses without end"
    return f"{type(error).__name__}: {error}"


def _normalise(message):
    """A message as transformers shows it to templates.

    Without the keys that are null, which templates don't look for; with its reasoning under each of
    the names that templates and clients have for it.
    """
    message = {key: value for key, value in message.items() if value is not None}
    for name in ("reasoning_content", "thinking", "reasoning"):
        reasoning = message.get(name)
        if reasoning is not None:
            return {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


class Renderer:
    """One model's templates, compiled: by name, "default" and perhaps "tool_use"."""

    def __init__(self, sources_json, special_tokens_json):
        environment = _environment()
        self._templates = {name: environment.from_string(source)
                           for name, source in json.loads(sources_json).items()}
        self._special_tokens = json.loads(special_tokens_json)

    def render(self, messages_json, tools_json, add_generation_prompt, kwargs_json, max_chars):
        """Returns (True, text) or (False, what is wrong)."""
        try:
            tools = json.loads(tools_json)
            variables = {"documents": None, **self._special_tokens, **json.loads(kwargs_json)}
            variables["messages"] = [_normalise(m) for m in json.loads(messages_json)]
            variables["tools"] = tools
            variables["add_generation_prompt"] = add_generation_prompt
            template = self._templates["default"]
            if tools is not None:
                template = self._templates.get("tool_use", template)
            return True, self._join(template.generate(**variables), max_chars)
        except _TooLong:
            return False, f"its text is longer than {max_chars} characters"
        except Exception as error:
            return False, _describe(error)

    @staticmethod
    def _join(pieces, max_chars):
        parts = []
        length = 0
        for piece in pieces:
            length += len(piece)
            if length > max_chars:
                raise _TooLong
            parts.append(piece)
        return "".join(parts)


def compile_templates(sources_json, special_tokens_json):
    """Returns (renderer, "") or (None, what is wrong)."""
    try:
        return Renderer(sources_json, special_tokens_json), ""
    except Exception as error:
        return None, _describe(error)
