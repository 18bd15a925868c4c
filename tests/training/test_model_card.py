"""Model cards: what they say of an adapter, and that it is true and fit to be published."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

import qpeft
from qpeft.training import RunFolder, train
from qpeft.training.model_card import write_run_card
from qpeft.training.recipe import make_recipe
from tiny_base import recipe_values

EVALUATION = {
    "task": "arithmetic",
    "n": 40,
    "metrics": {
        "answer_accuracy": {"value": 0.25, "low": 0.14, "high": 0.40},
        "perplexity": {"value": None, "low": None, "high": None},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, llama_base):
    folder = RunFolder(tmp_path_factory.mktemp("card") / "counting")
    secret = {"hub_token": "hf_not_to_be_seen"}
    train(make_recipe(recipe_values(llama_base, folder.path, training__max_steps=2, training__trl=secret)))
    return folder


def result_of(folder):
    return json.loads(folder.result.read_text())


def card_of(folder):
    return (folder.adapter / "README.md").read_text()


def test_the_card_tells_how_to_load_what_was_trained_and_what_it_costs(run, llama_base):
    card = ModelCard.load(run.adapter / "README.md")
    assert card.data.library_name == "peft"
    assert {"qpeft", "qtha"} <= set(card.data.tags)
    assert card.data.base_model is None, "a folder of this machine is no name on the hub"
    text = card.text
    assert text.strip().startswith("# counting")
    assert "Model ID" not in text
    code = text.split("```python\n")[1].split("```")[0]
    assert code.index("import qpeft") < code.index("qpeft.load")
    result = result_of(run)["training"]
    assert f"| angles | {result['parameters']['angles']:,} |" in text
    assert f"| total | {result['parameters']['total']:,} |" in text
    assert f"| train loss | {result['train_loss']:.4g} |" in text
    assert f"| validation loss | {result['eval_loss']:.4g} |" in text
    assert "circuit of 2 qubits" in text
    assert "computed exactly on a classical simulator" in text
    assert "advantage" not in text


def test_the_recipe_in_the_card_repeats_the_run(run):
    written = yaml.safe_load(card_of(run).split("```yaml\n")[1].split("```")[0])
    again = make_recipe({**written, "output": str(run.path)})
    ours = make_recipe(yaml.safe_load(run.recipe.read_text()))
    assert again.adapter == ours.adapter
    assert again.data == ours.data
    assert again.training.model_copy(update={"trl": ours.training.trl}) == ours.training


def test_credentials_and_places_stay_out(run):
    assert "hf_not_to_be_seen" not in card_of(run)
    assert f"output: {run.path}" not in card_of(run)


def test_an_evaluation_and_a_chip_add_their_numbers(run):
    chip = {"executor": "virtual-wukong", "chip": "wukong-72", "circuits": 1200, "cost": None, "layers": {"q": {}}}
    before = card_of(run)
    write_run_card(run, {**result_of(run), "evaluation": EVALUATION, "execution": chip})
    text = card_of(run)
    assert "## Evaluation: arithmetic" in text
    assert "| answer accuracy | 0.25 (95 % interval 0.14 to 0.4) |" in text
    assert "| perplexity | no number |" in text
    assert "executed on virtual-wukong, where 1,200 circuits were asked for" in text
    assert "| chip | wukong-72 |" in text
    write_run_card(run, result_of(run))
    assert card_of(run) == before


@pytest.mark.parametrize(
    ("adapter", "said", "unsaid"),
    [
        ({"method": "qtha", "r": 2, "bond_dim": 2, "arch": "mpo"}, "fixed matrix", "qubits"),
        ({"method": "qtha", "r": 2, "arch": "classical"}, "classical non-linear branch", "qubits"),
        ({"method": "lora", "r": 2}, "AutoPeftModelForCausalLM", "import qpeft"),
    ],
)
def test_adapters_without_a_circuit_do_not_claim_one(tmp_path, llama_base, adapter, said, unsaid):
    folder = RunFolder(tmp_path / "run")
    values = recipe_values(llama_base, folder.path, training__max_steps=1)
    train(make_recipe({**values, "adapter": {**adapter, "target_modules": ["q_proj"]}}))
    assert said in card_of(folder)
    assert unsaid not in card_of(folder)


class Hub(BaseHTTPRequestHandler):
    """What the hub answers to a client that creates a repository and commits small files to it."""

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/api/repos/create":
            return self._answer({"url": "https://huggingface.co/someone/counting", "id": "0"})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        repo = self.path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")[0]
        if "/preupload/" in self.path:
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(sent)["files"]]  # fmt: skip
            return self._answer({"files": modes})
        for line in map(json.loads, sent.splitlines()):
            if line["key"] == "file":
                self.server.files[f"{repo}/{line['value']['path']}"] = base64.b64decode(line["value"]["content"])
        return self._answer(
            {"commitUrl": "https://huggingface.co/someone/counting/commit/0", "commitOid": "0", "pullRequestUrl": None}
        )

    def do_HEAD(self):
        self.send_error(404)

    def do_GET(self):
        self._answer({"id": "someone/counting", "sha": "0"})

    def _answer(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """Files by repository and name, as the stand-in for the hub received them."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.files = {}
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", place)
        template = place + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        yield server.files
        server.shutdown()


def test_the_folder_of_an_adapter_is_what_the_hub_needs(run, llama_base, tmp_path, hub):
    HfApi(token="hf_secret").upload_folder(repo_id="someone/counting", folder_path=run.adapter)
    assert b"import qpeft" in hub["someone/counting/README.md"]
    for name, content in hub.items():
        (tmp_path / Path(name).name).write_bytes(content)
    assert qpeft.load(tmp_path, base_model=str(llama_base)).peft_config["default"].r == 2


def test_a_loaded_adapter_pushes_itself(run, llama_base, hub):
    qpeft.load(run.adapter, base_model=str(llama_base)).push_to_hub("someone/counting", token="hf_secret")
    assert (
        hub["someone/counting/adapter_model.safetensors"] == (run.adapter / "adapter_model.safetensors").read_bytes()
    )
    assert json.loads(hub["someone/counting/adapter_config.json"])["peft_type"] == "QTHA"
