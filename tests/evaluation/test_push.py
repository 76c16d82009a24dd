"""A push sends a proven export byte for byte, and nothing before all is checked: against a small hub of our own."""
import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import HfApi, constants

from finetune_lib.core import ExportError
from finetune_lib.evaluation.export import export_huggingface, leaving, push_to_hub, validate_export, write_manifest
from finetune_lib.evaluation.merge import behavior


class SmallHub(ThreadingHTTPServer):
    """What `huggingface_hub` asks of the hub for a push, in memory: repositories, large files by hash, commits."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.asked, self.repositories, self.large = [], {}, {}

    def answer(self, method: str, path: str, body: bytes) -> dict | None:
        """What to say; None is "not found"."""
        if method == "PUT":
            self.large[path.rpartition("/")[2]] = body
            return {}
        if method == "GET":
            found = self.repositories.get(path.removeprefix("/api/models/"))
            return found and {"id": "you/model", "private": found["private"], "siblings": []}
        if path.endswith("/commit/main"):
            return self.commit(path.split("/")[3:5], [json.loads(line) for line in body.splitlines()])
        sent = json.loads(body)
        if path == "/api/repos/create":
            name = f"{sent['organization']}/{sent['name']}"
            self.repositories.setdefault(name, {"private": sent["visibility"] == "private", "files": {}})
            return {"url": f"{self.address}/{name}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            large = (".safetensors", ".gguf")
            return {"files": [{"path": one["path"], "shouldIgnore": False,
                               "uploadMode": "lfs" if one["path"].endswith(large) else "regular"}
                              for one in sent["files"]]}
        if path.endswith("/info/lfs/objects/batch"):
            return {"transfer": "basic", "objects": [
                {**one, "actions": {"upload": {"href": f"{self.address}/large/{one['oid']}"}}}
                for one in sent["objects"]]}
        return None

    def commit(self, name: list[str], lines: list[dict]) -> dict:
        files = self.repositories["/".join(name)]["files"]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
        return {"commitUrl": f"{self.address}/{'/'.join(name)}/commit/1", "commitOid": "1" * 40}


class Answer(BaseHTTPRequestHandler):
    """One request: who asks without the token is turned away."""

    def reply(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.asked.append(f"{self.command} {path}")
        allowed = self.command == "PUT" or self.headers.get("Authorization") == "Bearer a-token"
        found = hub.answer(self.command, path, body) if allowed else None
        content = json.dumps({"error": "no"} if found is None else found).encode()
        self.send_response(200 if found is not None else 404 if allowed else 401)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = reply

    def log_message(self, *args) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the hub's older protocol, which needs no second server
    server = SmallHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.address, token="a-token")


@pytest.fixture
def exported(llama, tokenizer, tmp_path):
    export_huggingface(llama, tokenizer, tmp_path / "out", base="test")
    return tmp_path / "out"


def test_what_arrives_is_the_folder_byte_for_byte_and_the_same_model(
        exported, hub, api, llama, tokenizer, prompts, tmp_path):
    address = push_to_hub(exported, "you/model", api=api)
    assert address == f"{hub.address}/you/model/commit/1" and hub.repositories["you/model"]["private"]
    files = hub.repositories["you/model"]["files"]
    assert files == {path.name: path.read_bytes() for path in exported.iterdir()}
    (tmp_path / "arrived").mkdir()
    for name, content in files.items():
        (tmp_path / "arrived" / name).write_bytes(content)
    check = validate_export(tmp_path / "arrived", tokenizer, behavior(llama, prompts[:3], {}))
    assert check.difference <= 1e-5 and check.greedy_agreement == 1.0


SPOILED = {
    "changed after the proof": (lambda folder: (folder / "config.json").write_text("{}"), "config.json: changed"),
    "a new file": (lambda folder: (folder / "notes.txt").write_text("x"), "notes.txt: not in the manifest"),
    "a pickle": (lambda folder: (folder / "state.pt").write_bytes(b"\x80\x04."), "state.pt: a pickle"),
    "bytes": (lambda folder: (folder / "picture").write_bytes(b"\xff\xd8\xff"), "picture: is neither text nor weights"),
    "another format's weights": (lambda folder: (folder / "m.gguf").write_bytes(b"GGUF\0\0"), "m.gguf: is neither"),
    "a link": (lambda folder: (folder / "link").symlink_to("/etc/hostname"), "link: is a link"),
    "a linked folder": (lambda folder: (folder / "more").symlink_to("/etc"), "more: is a link"),
    "code": (lambda folder: (folder / "modeling.py").write_text("x"), "modeling.py: does not belong"),
    "a secret": (lambda folder: (folder / "README.md").write_text("hf_" + "a" * 34), "README.md: looks as if"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_must_not_leave_is_refused_before_the_network_is_touched(name, exported, hub, api):
    spoil, message = SPOILED[name]
    spoil(exported)
    for _ in range(2):
        with pytest.raises(ExportError, match=message):
            push_to_hub(exported, "you/model", api=api)
        if name in ("another format's weights", "bytes", "a pickle", "code", "a secret"):
            write_manifest(exported)  # a manifest written by hand proves nothing
    assert hub.asked == []


def test_weights_that_cannot_be_loaded_are_refused_though_the_manifest_fits(exported, hub, api):
    (exported / "config.json").write_text((exported / "config.json").read_text().replace('"hidden_size": 64',
                                                                                         '"hidden_size": 32'))
    write_manifest(exported)
    with pytest.raises((ExportError, RuntimeError, ValueError)):
        push_to_hub(exported, "you/model", api=api)
    assert hub.asked == []


def test_a_folder_that_was_never_proven_is_refused(exported, hub, api, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").write_bytes(b"GGUF\0\0")
    write_manifest(tmp_path / "gguf", "gguf-q8_0")
    for folder, message in (("bare", "without a manifest.json"), ("gguf", "without what its own runtime made of it")):
        with pytest.raises(ExportError, match=message):
            push_to_hub(tmp_path / folder, "you/model", api=api)
    assert hub.asked == []


def test_other_formats_leave_when_their_runtime_has_measured_them(hub, api, tmp_path):
    (tmp_path / "README.md").write_text("# gguf-q8_0")
    (tmp_path / "model.gguf").write_bytes(b"GGUF\0\0\xff")
    write_manifest(tmp_path, "gguf-q8_0", perplexity=2.1)
    assert leaving(tmp_path) == ["README.md", "manifest.json", "model.gguf"]
    push_to_hub(tmp_path, "you/model", api=api)
    assert hub.repositories["you/model"]["files"]["model.gguf"] == b"GGUF\0\0\xff"


def test_a_private_model_is_not_sent_to_a_public_repository(exported, hub, api):
    hub.repositories["you/model"] = {"private": False, "files": {}}
    with pytest.raises(ExportError, match="everybody can read"):
        push_to_hub(exported, "you/model", api=api)
    assert hub.repositories["you/model"]["files"] == {}
    push_to_hub(exported, "you/model", private=False, api=api)
    assert "model.safetensors" in hub.repositories["you/model"]["files"]


def test_no_login_and_no_network_say_what_to_do(exported, hub):
    with pytest.raises(ExportError, match="hf auth login"):
        push_to_hub(exported, "you/model", api=HfApi(endpoint=hub.address, token="another"))
    assert hub.repositories == {}
    with pytest.raises(ExportError, match="the hub must take you/model, got Connect"):
        push_to_hub(exported, "you/model", api=HfApi(endpoint="http://127.0.0.1:9", token="a-token"))


def test_a_name_that_is_none_is_refused_first(hub, tmp_path):
    with pytest.raises(ValueError, match="[Rr]epo"):
        push_to_hub(tmp_path, "not a name/at all/")
    assert hub.asked == []


def test_a_run_s_export_is_sent_by_the_command_s_own_way(exported, hub, tmp_path, monkeypatch):
    from finetune_lib.pipeline.shipping import ship

    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", "a-token")
    (tmp_path / "run" / "export").mkdir(parents=True)
    exported.rename(tmp_path / "run" / "export" / "huggingface")
    [said] = ship(tmp_path / "run", repository="you/model")
    assert said == f"hub       {hub.address}/you/model/commit/1" and hub.repositories["you/model"]["private"]
