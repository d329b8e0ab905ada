"""What is converted: a big_vision file, a Hugging Face directory, a trained folder."""

import dataclasses

import pytest
from flax.traverse_util import unflatten_dict

from tests.tools.convert.folders import TOWER, random_params
from vvlm_jax.config import DataConfig, ModelConfig, TrainConfig
from vvlm_jax.data import synthetic
from vvlm_jax.models.variants import LLAMA, VISION
from vvlm_jax.override import to_json
from vvlm_jax.train import model_dir
from vvlm_jax.weights import export


@pytest.fixture(scope="package")
def tower():
    return random_params(ModelConfig(vision=TOWER), ("vision",), True, True)


@pytest.fixture(scope="package")
def npz(tower, tmp_path_factory):
    file = tmp_path_factory.mktemp("npz") / "tower.npz"
    export.write_big_vision(file, tower, ModelConfig(vision=TOWER))
    return file


@pytest.fixture(scope="package")
def llama(tmp_path_factory):
    """Return a Hugging Face directory of study-s in bfloat16, with a tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    model = ModelConfig(llm=LLAMA["study-s"])
    params = random_params(model, ("llm",), dtype="bfloat16")
    export.write_huggingface(folder, params, model)
    synthetic.write_tokenizer(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id":[1, 3]}')
    (folder / "modeling.py").write_text("raise SystemExit('executed')")
    return folder


@pytest.fixture
def stage(tmp_path):
    """Return a trained folder of a whole VLM: config.json and params/, tokenizer elsewhere."""

    def make(**options):
        synthetic.write_tokenizer(tmp_path / "words")
        config = TrainConfig(
            model=ModelConfig("study/12", "study-s", 2, 4, "float32", **options),
            data=DataConfig(tokenizer=str(tmp_path / "words")),
        )
        sizes = dataclasses.replace(config.model, vision=VISION["study/12"], llm=LLAMA["study-s"])
        newline = ("newline",) if options else ()
        params = random_params(sizes, ("vision", "projector", "llm", *newline))
        params = unflatten_dict(params, sep="/")
        (tmp_path / "run").mkdir()
        (tmp_path / "run/config.json").write_text(to_json(config))
        model_dir.save_params(tmp_path / "run", params)
        return tmp_path / "run"

    return make
