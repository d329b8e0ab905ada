import pytest


@pytest.fixture(scope="session")
def letters_model(tmp_path_factory):
    """Return a model of random parameters that can write nothing but letters."""
    import jax

    from tests.vvlm_jax.random_model import random_model
    from vvlm_jax.data import tokenizer
    from vvlm_jax.train.model_dir import save_params

    folder = tmp_path_factory.mktemp("letters")
    words = [*"ABCD", *(f"{i}" for i in range(40)), "what", "is", "number", "thing", ".", "?"]
    tokenizer.word_level(words).save(str(folder / "tokenizer.json"))
    tok = tokenizer.load(folder)
    params = random_model(folder, tok, max_position=2048)
    head = params["llm"]["lm_head"]["kernel"]
    a, b, c, d = (tok.encode(letter)[0] for letter in "ABCD")
    only = jax.numpy.zeros_like(head).at[:, a].set(head[:, a]).at[:, b].set(-head[:, a])
    only = only.at[:, c].set(head[:, c]).at[:, d].set(-head[:, c])
    params["llm"]["lm_head"]["kernel"] = only  # of two opposites one is above 0, as no other is
    save_params(folder, params)
    return folder
