import pytest


@pytest.fixture(scope="session")
def letters_model(tmp_path_factory):
    """Return a model of random parameters that can write nothing but letters."""
    import jax

    from vvlm_jax.config import DataConfig, LlamaConfig, ModelConfig, TrainConfig, VisionConfig
    from vvlm_jax.data import tokenizer
    from vvlm_jax.models import vlm
    from vvlm_jax.override import to_json
    from vvlm_jax.train.model_dir import save_params

    folder = tmp_path_factory.mktemp("letters")
    words = [*"ABCD", *(f"{i}" for i in range(40)), "what", "is", "number", "thing", ".", "?"]
    tokenizer.word_level(words).save(str(folder / "tokenizer.json"))
    tok = tokenizer.load(folder)
    config = TrainConfig(
        model=ModelConfig(
            VisionConfig(width=16, depth=2, mlp_dim=24, num_heads=2, patch_size=4, image_size=16),
            LlamaConfig(
                vocab=tok.vocab, width=24, depth=2, mlp_dim=40, num_heads=4, num_kv_heads=2,
                head_dim=8, tie_embeddings=False, rope_theta=100.0, max_position=2048,
            ),
            num_frames=3, tokens_per_frame=4, dtype="float32", remat="none",
        ),
        data=DataConfig(tokenizer=str(folder)),
    )  # fmt: skip
    model = vlm.build(config.model, tok.special[tokenizer.VIDEO], tok.vocab)
    params = jax.jit(vlm.init, static_argnums=0)(model, jax.random.key(1))
    params = jax.tree.map(lambda x: 3 * x, params)
    head = params["llm"]["lm_head"]["kernel"]
    a, b, c, d = (tok.encode(letter)[0] for letter in "ABCD")
    only = jax.numpy.zeros_like(head).at[:, a].set(head[:, a]).at[:, b].set(-head[:, a])
    only = only.at[:, c].set(head[:, c]).at[:, d].set(-head[:, c])
    params["llm"]["lm_head"]["kernel"] = only  # of two opposites one is above 0, as no other is
    save_params(folder, params)
    (folder / "config.json").write_text(to_json(config))
    return folder
