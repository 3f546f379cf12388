"""docs/service.md and the README say what the service is."""

import re
from unittest.mock import create_autospec

from helpers.paths import ROOT
from helpers.services import CONFIGS
from terraseg.prepare.config import FolderOptions
from terraseg.serve.api import Service, Settings
from terraseg.serve.client import Client


def test_the_table_of_requests_is_that_of_the_routes(tmp_path):
    application = Service(Settings(tmp_path, CONFIGS, tmp_path)).application()
    named = re.compile(r"{(\w+)[^}]*}")
    routes = {
        f"{route.method} {named.sub(lambda name: name[1].upper(), route.resource.canonical)}"
        for route in application.router.routes()
        if route.method != "HEAD"  # aiohttp's own, of every GET
    }
    table = (ROOT / "docs/service.md").read_text(encoding="utf-8").partition("## HTTP")[2].partition("\n## ")[0]
    told = set(re.findall(r"`((?:GET|PUT|POST|DELETE) /[^` ]*)`", table))
    assert {path.replace("/metrics/test", "/metrics/SPLIT") for path in told} == routes


def test_the_readmes_example_is_taken_by_the_sdk():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "Client(" in block)
    client = create_autospec(Client, instance=True)
    exec(code, {"Client": lambda url: client if url.startswith("http") else None})  # noqa: S102
    (options,) = (call.kwargs for call in client.upload.call_args_list)
    assert FolderOptions(**options).classes == ("land", "flood")
    assert (CONFIGS / f"{client.finetune.call_args.kwargs['recipe']}.yaml").is_file()
