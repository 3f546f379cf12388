"""Any request to any route of the OpenAPI document gets an answer of the document, never a failure of the server."""

import json
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.services import raw, service

_ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.text(),
    st.sampled_from(["../../etc/passwd", "<script>", "'; drop table jobs; --", "\0", "a" * 5000]),
)  # fmt: skip
_JSON = st.recursive(_ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


def _of_schema(schema: dict[str, Any], defined: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a schema, each part of which may be anything else instead."""
    if "$ref" in schema:
        return _of_schema(defined[schema["$ref"].rpartition("/")[2]], defined)
    if "properties" in schema:
        parts = {key: _of_schema(each, defined) for key, each in schema["properties"].items()}
        return st.fixed_dictionaries({}, optional=parts) | _ODD
    if "anyOf" in schema:
        return st.one_of([_of_schema(each, defined) for each in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]]) | _ODD
    if schema.get("type") == "array":
        return st.lists(_of_schema(schema.get("items", {}), defined), max_size=3) | _ODD
    kinds = {"string": st.text(max_size=20), "integer": st.integers(-5, 300), "number": st.floats(-5, 5)}
    return kinds.get(schema.get("type", ""), _JSON) | _ODD


def test_no_request_is_answered_by_a_failure(tmp_path: Path) -> None:
    with service(tmp_path, rate=10**9) as client, raw(client) as http:
        document = http.get("/openapi.json").json()
        defined = document["components"]["schemas"]
        routes = [(method, path, route) for path, each in document["paths"].items() for method, route in each.items()]
        assert len(routes) > 20
        segment = st.sampled_from(["x", "model-1", "..", "%00", "%2e%2e%2f", "'", "é", "%ff", "a" * 300]) | st.text(
            st.characters(exclude_characters="/?#", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20
        )

        @settings(max_examples=300, suppress_health_check=list(HealthCheck))
        @given(st.data())
        def ask(data: st.DataObject) -> None:
            method, path, route = data.draw(st.sampled_from(routes))
            for name in [part[1:-1] for part in path.split("/") if part.startswith("{")]:
                path = path.replace(f"{{{name}}}", data.draw(segment))
            asked = [each["name"] for each in route.get("parameters", []) if each["in"] == "query"]
            query = {name: data.draw(st.text(max_size=9)) for name in asked}
            content = b""
            if body := route.get("requestBody"):
                schema = next(iter(body["content"].values()))["schema"]
                content = json.dumps(data.draw(_of_schema(schema, defined))).encode()
            elif method in ("put", "post"):
                content = data.draw(st.binary(max_size=50))
            headers = {"Content-Type": "application/json"}
            try:
                answer = http.request(method, path, params=query, content=content, headers=headers)
            except httpx.InvalidURL:
                return
            assert answer.status_code < 500, (method, path, query, content, answer.text)
            assert "Traceback" not in answer.text
            assert str(tmp_path) not in answer.text

        ask()
