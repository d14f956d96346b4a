"""The page at ``/docs``: the OpenAPI document as one HTML page that loads nothing, for clusters without a network."""

from html import escape
from typing import Any

_STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
code,pre{font:13px/1.4 ui-monospace,monospace;background:#8882;border-radius:4px;padding:.1em .3em}
pre{padding:.7em;overflow-x:auto}table{border-collapse:collapse;width:100%}
td,th{border-top:1px solid #8884;padding:.3em .6em;text-align:left;vertical-align:top}
h2{margin-top:2.2em}:root{color-scheme:light dark}"""
_EXAMPLE = '{"model": "llama-2-13b", "cluster": "8xA100-80GB"}'
_JSON = "application/json"
_MOST_VALUES = 12  # of an enumeration


def docs_page(document: dict[str, Any]) -> str:
    """Routes, their bodies and answers, and the fields of every schema.

    Args:
        document: An OpenAPI 3.1 document whose schemas are components.
    """
    paths = document["paths"].items()
    routes = "".join(_route(path, method, said) for path, methods in paths for method, said in methods.items())
    schemas = "".join(_schema(name, said) for name, said in sorted(document["components"]["schemas"].items()))
    title = escape(document["info"]["title"])
    example = escape(f"curl http://HOST:PORT/plan -H 'Content-Type: {_JSON}' -d '{_EXAMPLE}'")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title} {escape(document['info']['version'])}</h1><p>{_words(document['info'])}</p>"
        f"<p>For programs: <a href=openapi.json>openapi.json</a>.</p><pre>{example}</pre>"
        f"{routes}<h2>Schemas</h2>{schemas}</html>"
    )


def _route(path: str, method: str, said: dict[str, Any]) -> str:
    body = said.get("requestBody", {}).get("content", {}).get(_JSON, {}).get("schema")
    rows = [("body", _type(body))] if body else []
    rows += [(item["name"], _type(item["schema"])) for item in said.get("parameters", ())]
    for status, answer in said["responses"].items():
        schemas = [_type(content["schema"]) for content in answer.get("content", {}).values() if content.get("schema")]
        rows.append((status, " ".join([*schemas, _words(answer)])))
    return f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2><p>{_words(said)}</p>{_table(rows)}"


def _schema(name: str, said: dict[str, Any]) -> str:
    needed = set(said.get("required", ()))
    rows = [
        (field, f"{_type(value)}{', required' if field in needed else _default(value)}. {_words(value)}")
        for field, value in said.get("properties", {}).items()
    ]
    return f"<h3 id={escape(name)}>{escape(name)}</h3><p>{_words(said)}</p>{_table(rows) if rows else _type(said)}"


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td><code>{escape(name)}</code><td>{words}" for name, words in rows)
    return f"<table>{cells}</table>"


def _type(said: dict[str, Any]) -> str:
    """What a value may be: a link to its schema, alternatives, values, or a type with its bounds."""
    if "$ref" in said:
        name = said["$ref"].rsplit("/", 1)[-1]
        return f"<a href=#{escape(name)}>{escape(name)}</a>"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in said:
            return " or ".join(_type(each) for each in said[several] if each.get("type") != "null")
    if "enum" in said or "const" in said:
        values = said.get("enum", [said.get("const")])
        listed = ", ".join(f"<code>{escape(str(value))}</code>" for value in values[:_MOST_VALUES])
        return listed + (", ..." if len(values) > _MOST_VALUES else "")
    kinds = said.get("type", "anything")
    kind = " or ".join(kinds) if isinstance(kinds, list) else kinds
    inner = said.get("items") if kind == "array" else said.get("additionalProperties")
    of = f" of {_type(inner)}" if isinstance(inner, dict) and inner else ""
    return escape(kind) + of + _bounds(said)


def _bounds(said: dict[str, Any]) -> str:
    low, high = said.get("minimum", said.get("exclusiveMinimum")), said.get("maximum", said.get("exclusiveMaximum"))
    found = [f"{word} {end:g}" for word, end in (("from", low), ("to", high)) if end is not None]
    return f" {' '.join(found)}" if found else ""


def _default(said: dict[str, Any]) -> str:
    value = said.get("default")
    return "" if value in (None, "", {}, []) else f", default <code>{escape(str(value))}</code>"


def _words(said: dict[str, Any]) -> str:
    return escape(said.get("description", ""))
