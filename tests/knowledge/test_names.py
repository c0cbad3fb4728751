"""Every name that a reader may bring from another trainer or guide leads to an entry, and to one only."""

from pathlib import Path

import pytest

from knowledge import parameters as module
from knowledge.answers import PlainError
from knowledge.names import find, headings, normal
from knowledge.parameters import Choice, Parameter, Term

NAMES = Path(__file__).parent.parent / "data" / "names"
WHERE_THEY_LEAD = {
    path.stem: [line.split("\t") for line in path.read_text("utf-8").splitlines()] for path in NAMES.glob("*.tsv")
}
LISTED = [(path.stem, name) for path in sorted(NAMES.glob("*.txt")) for name in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("source", sorted({source for source, _ in LISTED}))
def test_every_name_of_another_trainer_or_guide_resolves(source):
    unknown = []
    for listed, name in LISTED:
        try:
            if listed == source:
                find(name)
        except PlainError:
            unknown.append(name)
    assert not unknown


@pytest.mark.parametrize("source", WHERE_THEY_LEAD)
def test_every_name_of_guides_windows_and_configs_leads_where_it_should(source):
    assert len(WHERE_THEY_LEAD[source]) >= 200
    led = {name: (find(name).name, address) for name, address in WHERE_THEY_LEAD[source]}
    assert not {name: (found, wanted) for name, (found, wanted) in led.items() if found != wanted}


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("--network_dim", "network.rank"),
        ("network_dim=32", "network.rank"),
        ("network_dim: 32", "network.rank"),
        ("ss_network_dim", "network.rank"),
        ("config.process.0.train.lr", "optimizer.learning_rate"),
        ("min_snr_gamma_enabled", "loss.minimum_snr_gamma"),
        ("use_wandb", "logging.tracker"),
        ("sample_prompt", "sampling.prompts"),
        ("Flip Augmentation (doubles the set)", "dataset.flip"),
        ("LoRA Learning Target 1: U-Net", "unet_part"),
        ("U-Net LR", "optimizer.learning_rate"),
        ("what is rank", "network.rank"),
        ("LoHa alpha", "network.alpha"),
        ("How many epochs?", "schedule.epochs"),
        ("--crepa_similarity_threshold", "feature_alignment"),
        ("ramtorch_vae", "group_offload"),
    ],
)
def test_a_name_is_known_in_whatever_way_it_is_written(written, address):
    assert find(written).name == address


def test_a_name_that_several_settings_share_is_answered_with_all_of_them():
    with pytest.raises(PlainError, match=r"sampling\.every_epochs, validation\.every_epochs, saving\.every_epochs"):
        find("every_epochs")
    with pytest.raises(PlainError, match="Near to it"):
        find("sampling.name")


TYPED = [
    ("netwrok_dim", "network.rank"), ("network_dmi", "network.rank"), ("rnak", "network.rank"),
    ("aplha", "network.alpha"), ("learnig rate", "optimizer.learning_rate"), ("unt_lr", "optimizer.learning_rate"),
    ("max_train_epcohs", "schedule.epochs"), ("num_repeates", "dataset.folders.repeats"),
    ("bacth_size", "schedule.batch_size"), ("min_snr_gama", "loss.minimum_snr_gamma"),
    ("gradient_checkpoint", "memory.gradient_checkpointing"), ("shufle_caption", "dataset.shuffle_tags"),
    ("keep_toekns", "dataset.keep_tokens"), ("noise_ofset", "noise.offset"), ("cosnie", "schedule.scheduler.cosine"),
    ("prodgiy", "optimizer.name.prodigy"), ("adamw8bt", "optimizer.name.adamw8bit"), ("overftting", "overfitting"),
]  # fmt: skip


def test_the_name_that_was_meant_is_named_where_one_is_mistyped():
    for typed, meant in TYPED:
        with pytest.raises(PlainError) as raised:
            find(typed)
        assert f"({meant})?" in str(raised.value), typed


def test_what_shares_the_telling_words_is_named_where_nothing_is_spelt_alike():
    with pytest.raises(PlainError, match=r"Near to it: .*dataset\.caption_prefix"):
        find("prefix of the caption")
    with pytest.raises(PlainError, match=r'Nothing here is called "asdfgh"\. See'):
        find("asdfgh")


@pytest.mark.parametrize("nothing", ["", "--", "use", "=", "."])
def test_a_name_without_a_word_in_it_is_nothing(nothing):
    with pytest.raises(PlainError, match="Nothing here is called"):
        find(nothing)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("network_dim", "network.rank"),
        ("Network Rank (Dimension)", "network.rank"),
        ("net_dim", "network.rank"),
        ("lora_rank", "network.rank"),
        ("unet_lr", "optimizer.learning_rate"),
        ("Keep n tokens", "dataset.keep_tokens"),
        ("v_parameterization", "base_model.prediction_type"),
        ("use_8bit_adam", "optimizer.name.adamw8bit"),
        ("constant_with_warmup", "schedule.scheduler.constant"),
        ("max_train_epochs", "schedule.epochs"),
        ("reg_img_folder", "dataset.folders.regularisation"),
        ("Aspect Ratio Grouping", "dataset.buckets"),
        ("offset_noise_weight", "noise.offset"),
        ("snr_gamma", "loss.minimum_snr_gamma"),
        ("caption_ext", "dataset.caption_extension"),
        ("xformers", "attention_kernels"),
        ("DoRA", "network.algorithm.dora"),
    ],
)
def test_a_name_leads_where_it_should(name, address):
    assert find(name).name == address


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("netwrok_dim", "network dim"),
        ("learnig rate", "learning rate"),
        ("Clipskip", None),
        ("gradient checkpoint", None),
    ],
)
def test_typos_are_forgiven_or_answered_with_the_nearest_name(typo, meant):
    try:
        assert isinstance(find(typo), Parameter | Choice | Term)
    except PlainError as error:
        assert "Did you mean" in str(error)  # noqa: PT017
        assert meant is None or meant in str(error)  # noqa: PT017


def test_no_name_is_claimed_by_two_entries():
    claims: dict[str, set[str]] = {}

    def claim(address, table):
        for words in table.get("names", {}).values():
            for word in words:
                if not word.endswith("*"):
                    claims.setdefault(normal(word), set()).add(address)

    for name in module._fields():
        table = module._table(name)
        claim(name, table)
        for value, choice in table.get("choices", {}).items():
            claim(f"{name}.{value}", choice)
    for _, name, table in module._term_tables():
        claim(name, table)
    twice = {word: owners for word, owners in claims.items() if len(owners) > 1}
    assert not twice, "a setting that the program has now no longer belongs in elsewhere.toml"


def test_the_quick_reading_of_headings_finds_what_parsing_finds():
    parsed = {}

    def add(address, table):
        names = tuple(word for words in table.get("names", {}).values() for word in words)
        parsed[address] = (table["title"], names)

    for name in module._fields():
        table = module._table(name)
        add(name, table)
        for value, choice in table.get("choices", {}).items():
            add(f"{name}.{value}", choice)
    for _, name, table in module._term_tables():
        add(name, table)
    read = {address: (title, tuple(n.replace('\\"', '"') for n in names)) for address, title, names in headings()}
    assert read == parsed
