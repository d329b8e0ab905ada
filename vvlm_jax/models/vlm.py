"""The video vision-language model: encode frames, project, resample, splice into the text, decode.

The order is that of LLaVA-NeXT: the projector maps every frame's features, then the g × g grid is
resampled to V tokens. The T·V tokens of a video, ordered by frame and then row-major, replace its
placeholder ids, with newline tokens among them when the config has them. The data pipeline expands
each placeholder to T·V ids, so that a row may hold several videos or images, or none; their frames
are concatenated along T.

With QueCC, V tokens a frame are computed from the encoder's features and the question, and then
projected. The language model reads the question first, without a gradient.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vvlm_jax.config import LlamaConfig, ModelConfig, VisionConfig
from vvlm_jax.config_check import choose
from vvlm_jax.models import resampler, variants
from vvlm_jax.models.kv_cache import KVCache, grow
from vvlm_jax.models.llama import Llama
from vvlm_jax.models.projector import Projector
from vvlm_jax.models.quecc import QueCC
from vvlm_jax.models.sovit import SoViT
from vvlm_jax.sharding import split_rows


class VLM(nn.Module):
    """Video vision-language model.

    Parameters are `vision/…`, `projector/…`, `llm/…`, and where used `newline` [D] and `quecc/…`.
    `video_id` is the placeholder's token id, `newline_id` that of a newline. Only QueCC takes
    questions: `query_BQ`, int32 ids padded on the right, and `query_lengths_B`.
    """

    vision_config: VisionConfig
    llm_config: LlamaConfig
    tokens_per_frame: int
    video_id: int
    dtype: jnp.dtype = jnp.bfloat16
    remat: str = "none"
    resampler: str = "bilinear"
    newline_id: int | None = None
    attention: str = "auto"
    quecc_layers: tuple[int, ...] = ()
    frame_chunk: int = 0
    unroll: int = 1

    def setup(self):
        how = self.dtype, self.remat, self.attention, self.unroll
        self.vision = SoViT(self.vision_config, *how)
        self.projector = Projector(self.llm_config.width, self.dtype)
        self.llm = Llama(self.llm_config, *how)
        if self.resampler == "quecc":
            self.quecc = QueCC(self.tokens_per_frame, self.dtype)
        if self.newline_id is not None:
            width = self.llm_config.width
            self.newline = self.param("newline", nn.initializers.normal(width**-0.5), (width,))

    def encode(self, frames_BTHWC, query_BQ=None, query_lengths_B=None):
        """Encode uint8 frames to visual tokens [B, T·V, D].

        With `frame_chunk` at most that many frames of a row are encoded at once. Chunks have equal
        sizes; the last one is padded with black frames, whose tokens are dropped. Raises ValueError
        when the resampler is QueCC and there are no questions.
        """
        quecc = self.resampler == "quecc"
        text_BD = self.question(query_BQ, query_lengths_B) if quecc else None
        B, T, *image = frames_BTHWC.shape
        if not 0 < self.frame_chunk < T:
            return self._encode(frames_BTHWC, text_BD)
        chunks = -(-T // self.frame_chunk)
        size = -(-T // chunks)
        filled = jnp.pad(frames_BTHWC, ((0, 0), (0, chunks * size - T), (0, 0), (0, 0), (0, 0)))
        # Chunks are cut along T and not B, because rows are sharded over devices.
        parts = jnp.moveaxis(filled.reshape(B, chunks, size, *image), 1, 0)

        def one(model, _, text_BD, frames_BTHWC):
            return None, model._encode(split_rows(frames_BTHWC), text_BD)

        scan = nn.scan(
            nn.remat(one, prevent_cse=False) if self.remat == "chunks" else one,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(nn.broadcast, 0),
        )
        _, visual = scan(self, None, text_BD, parts)
        visual_BVD = jnp.moveaxis(visual, 0, 1).reshape(B, -1, visual.shape[-1])
        return visual_BVD[:, : T * self.tokens_per_frame]

    def _encode(self, frames_BTHWC, text_BD):
        B, T, *image = frames_BTHWC.shape
        pixels = (frames_BTHWC.reshape(B * T, *image).astype(jnp.float32) / 255 - 0.5) / 0.5
        if self.resampler == "quecc":
            x_BPD, layers = self.vision(pixels, self.quecc_layers)
            x_BVD = self.projector(self.quecc(x_BPD, layers, jnp.repeat(text_BD, T, axis=0)))
        else:
            x_BPD = self.projector(self.vision(pixels))
            x_BVD = resampler.METHODS[self.resampler](x_BPD, self.tokens_per_frame)
        return x_BVD.reshape(B, T * self.tokens_per_frame, -1)

    def question(self, query_BQ, query_lengths_B):
        """Return the final state [B, D] of each question's last token, with gradients stopped.

        Raises ValueError when there are no questions.
        """
        if query_BQ is None or query_lengths_B is None:
            raise ValueError("model.resampler = 'quecc' needs each row's question to encode frames")
        hidden_BQD, _ = self.llm(self.llm.embed(query_BQ))
        last_B11 = jnp.maximum(query_lengths_B - 1, 0)[:, None, None]
        return jax.lax.stop_gradient(jnp.take_along_axis(hidden_BQD, last_B11, axis=1)[:, 0])

    def splice(self, tokens_BL, visual_BVD):
        """Return embeddings [B, L, D] of the text with the visual tokens in place.

        The i-th placeholder of a row is replaced by its i-th visual token, and every newline id by
        `newline`. Visual tokens beyond a row's placeholders are dropped.
        """
        x_BLD = self.llm.embed(tokens_BL)
        if self.newline_id is not None:
            newline_11D = self.newline.astype(self.dtype)[None, None]
            x_BLD = jnp.where((tokens_BL == self.newline_id)[..., None], newline_11D, x_BLD)
        if visual_BVD.shape[1] == 0:
            return x_BLD
        is_visual_BL = tokens_BL == self.video_id
        nth_BL = jnp.clip(jnp.cumsum(is_visual_BL, axis=1) - 1, 0, visual_BVD.shape[1] - 1)
        placed_BLD = jnp.take_along_axis(visual_BVD, nth_BL[..., None], axis=1)
        return jnp.where(is_visual_BL[..., None], placed_BLD, x_BLD)

    def __call__(self, tokens_BL, frames_BTHWC, query_BQ=None, query_lengths_B=None):
        """Return final hidden states [B, L, D] of a teacher-forced pass."""
        visual_BVD = (
            self.encode(frames_BTHWC, query_BQ, query_lengths_B)
            if frames_BTHWC.shape[1]
            else jnp.zeros((len(tokens_BL), 0, 1))
        )
        return self.llm(self.splice(tokens_BL, visual_BVD))[0]

    def target_logits(
        self, tokens_BL, frames_BTHWC, positions_BM, query_BQ=None, query_lengths_B=None
    ):
        """Return float32 logits [B, M, vocab] at the given positions only."""
        return self.logits(
            self.target_states(tokens_BL, frames_BTHWC, positions_BM, query_BQ, query_lengths_B)
        )

    def target_states(
        self, tokens_BL, frames_BTHWC, positions_BM, query_BQ=None, query_lengths_B=None
    ):
        """Return final hidden states [B, M, D] at the given positions only."""
        hidden_BLD = self(tokens_BL, frames_BTHWC, query_BQ, query_lengths_B)
        return jnp.take_along_axis(hidden_BLD, positions_BM[..., None], axis=1)

    def logits(self, hidden):
        """Map hidden states [..., D] to float32 logits [..., vocab]."""
        return self.llm.logits(hidden)

    def prefill(self, tokens_BL, lengths_B, visual_BVD, extra: int):
        """Run right-padded prompts through the language model.

        Returns:
          (logits [B, vocab] at each row's last token, cache with `extra` empty slots a row).
        """
        hidden_BLD, (k, v) = self.llm(self.splice(tokens_BL, visual_BVD))
        last_B1D = jnp.take_along_axis(hidden_BLD, lengths_B[:, None, None] - 1, axis=1)
        return self.llm.logits(last_B1D)[:, 0], grow(k, v, lengths_B, extra)

    def decode_step(self, tokens_B, cache: KVCache):
        """Decode one token a row; return (logits of the next one [B, vocab], updated cache).

        See `Llama.decode_step`.
        """
        hidden_B1D, cache = self.llm.decode_step(self.llm.embed(tokens_B[:, None]), cache)
        return self.llm.logits(hidden_B1D)[:, 0], cache


def build(
    config: ModelConfig, video_id: int, vocab: int | None = None, newline_id: int | None = None
) -> VLM:
    """Return the model of a config.

    Args:
      video_id, newline_id: token ids of a visual token and of a newline; the second is required
        when the config has newlines, and ignored otherwise.
      vocab: number of ids of the tokenizer.

    Raises ConfigError for an unknown variant, ValueError when the tokenizer has more ids than the
    variant embeds or the newline's id is missing.
    """
    vision = choose(variants.VISION, config.vision, "model.vision")
    llm = choose(variants.LLAMA, config.llm, "model.llm")
    if vocab is not None and vocab > llm.vocab:
        name = config.llm if isinstance(config.llm, str) else "model.llm"
        raise ValueError(f"the tokenizer has {vocab} ids but {name} embeds {llm.vocab}")
    if config.newline == "none":
        newline_id = None
    elif newline_id is None:
        raise ValueError(f"model.newline = {config.newline!r} needs the id that stands for it")
    return VLM(
        vision,
        llm,
        config.tokens_per_frame,
        video_id,
        jnp.dtype(config.dtype),
        config.remat,
        config.resampler,
        newline_id,
        config.attention,
        config.quecc_layers,
        config.frame_chunk,
        config.unroll,
    )


def init(model: VLM, key) -> dict:
    """Return random float32 parameters."""
    # Parameters do not depend on the size of the inputs: one frame and one token suffice.
    size, quecc = model.vision_config.image_size, model.resampler == "quecc"
    return model.init(
        key,
        jnp.zeros((1, 1), jnp.int32),
        jnp.zeros((1, 1, size, size, 3), jnp.uint8),
        jnp.zeros((1, 1), jnp.int32),
        *((jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32)) if quecc else ()),
        method="target_logits",
    )["params"]


def shapes(model: VLM) -> dict:
    """Return the shape and dtype of every parameter without allocating any."""
    return jax.eval_shape(lambda: init(model, jax.random.key(0)))
