"""Mixtures of public data sets, in the layouts in which they are published.

vvlm prepare --mixture paper --source ROOT --out DIR

ROOT holds a folder a repository, named as the repository is: `LLaVA-Pretrain`, `LLaVA-Video-178K`,
`VideoGPT-plus_Training_Dataset`. Counts are those of the paper's Table 3.
"""

from vvlm_jax.data.prepare.mixture import MixtureConfig, SourceConfig, SubsetConfig

_LLAVA_VIDEO = "LLaVA-Video-178K"
_VIDEOGPT = "VideoGPT-plus_Training_Dataset"
_PLACES = ("{folder}", _LLAVA_VIDEO)
"""Archives of LLaVA-Video-178K may be extracted where they lie, or all into the same folder."""


def lcs() -> MixtureConfig:
    """Return LCS-558k, the captioned images of stage 1."""
    source = SourceConfig(
        "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
        ("LLaVA-Pretrain/images", "LLaVA-Pretrain"),
        "LLaVA-Pretrain/images.zip",
    )
    return MixtureConfig(
        "lcs", (SubsetConfig("lcs_558k", (source,), 558_128, "liuhaotian/LLaVA-Pretrain"),)
    )


def paper() -> MixtureConfig:
    """Return the finetuning mixture of Table 3: 2,192,374 examples of 13 sets."""
    return MixtureConfig(
        "paper",
        (
            _llava_video("llava_hound", 255_000, "llava_hound/*qa_255k_processed.json"),
            _llava_video(
                "llava_video_178k",
                1_335_500,
                *(
                    f"*_{origin}_v0_1/*{kind}*_processed.json"
                    for origin in ("academic", "youtube")
                    for kind in ("cap", "oe", "mc")
                ),
            ),
            _llava_video("activitynet_qa", 23_530, "*_activitynet*/*oe*_processed.json"),
            _llava_video(
                "next_qa", 34_114, "*_nextqa/*oe*_processed.json", "*_nextqa/*mc*_processed.json"
            ),
            _llava_video("perception_test", 2_403, "*_perceptiontest/*mc*_processed.json"),
            _videogpt(
                "video_instruct_100k", 100_010, "Activity_Videos", "conversation_videochatgpt"
            ),
            _videogpt("vcg_plus_112k", 112_716, "Activity_Videos", "vcg-plus_112K"),
            _videogpt("vcg_human", 25_803, "Activity_Videos", "vcg_human_annotated"),
            SubsetConfig(
                "videochat",
                (
                    *_videogpt("", 0, "webvid", "caption_videochat").sources,
                    *_videogpt("", 0, "videochat_it", "conversation_videochat1").sources,
                ),
                40_807,
                f"MBZUAI/{_VIDEOGPT}",
            ),
            _videogpt("kinetics_710", 39_949, "k710", "classification_k710"),
            _videogpt("ssv2", 40_000, "ssv2", "classification_ssv2"),
            _videogpt("clevrer", 82_620, "clevrer", "reasoning_clevrer_qa", "reasoning_clevrer_mc"),
            _videogpt("webvid", 99_922, "webvid", "vqa_webvid_qa"),
        ),
    )


def _llava_video(name: str, examples: int, *globs: str) -> SubsetConfig:
    sources = tuple(
        SourceConfig(f"{_LLAVA_VIDEO}/{glob}", _PLACES, "{folder}/*.tar.gz") for glob in globs
    )
    return SubsetConfig(name, sources, examples, f"lmms-lab/{_LLAVA_VIDEO}")


def _videogpt(name: str, examples: int, videos: str, *files: str) -> SubsetConfig:
    media = (f"{_VIDEOGPT}/instruction_tuning/{videos}",)
    sources = tuple(SourceConfig(f"{_VIDEOGPT}/annotations/{file}.json", media) for file in files)
    return SubsetConfig(name, sources, examples, f"MBZUAI/{_VIDEOGPT}")
