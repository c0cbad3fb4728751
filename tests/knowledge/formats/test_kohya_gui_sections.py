"""kohya_ss' config.toml, whose sections are not all about training."""

from __future__ import annotations

from foreign import SECTIONED, outcome, read


def test_sections_of_the_training_count_and_those_of_other_tools_do_not(tmp_path):
    imported = read(tmp_path, "config.toml", SECTIONED)
    config = imported.config
    assert imported.format == "kohya_ss config.toml"
    assert (config.dataset.resolution, config.schedule.epochs, config.schedule.warmup) == (768, 4, 0.1)
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adamw8bit", 0.0002)
    assert (config.dataset.folders[0].path, config.dataset.caption_extension) == ("./data", ".caption")
    assert config.output.author == "me"
    assert (config.network.rank, config.network.alpha) == (8, 1.0)  # what the form begins with
    assert "rank 8 and alpha 1" in imported.warnings[0]
    assert imported.listed("unknown") == []
    for key in ("loose", "server.allowed_paths", "wd14_caption.train_data_dir", "wd14_caption.caption_extension"):
        assert outcome(imported, key) == "no_effect"
    assert outcome(imported, "metadata.author") == "mapped"


def test_of_a_key_in_two_sections_the_later_counts_and_the_other_is_listed(tmp_path):
    imported = read(tmp_path, "config.toml", SECTIONED)
    assert imported.config.saving.every_steps is None
    assert "advanced.save_every_n_steps" in next(n.why for n in imported.notes if n.key == "basic.save_every_n_steps")
    keys = [note.key for note in imported.notes]
    assert len(keys) == len(set(keys)) == SECTIONED.count(" = ")


def test_one_section_alone_is_known_by_the_forms_own_words(tmp_path):
    assert read(tmp_path, "a.toml", '[basic]\nepoch = 3\noptimizer = "Lion"\n').config.optimizer.name == "lion"
    plain = read(tmp_path, "b.toml", "[basic]\nnetwork_dim = 3\n[advanced]\nmax_train_steps = 5\n")
    assert plain.format == "kohya_ss config.toml"
    options = read(tmp_path, "c.toml", "[advanced]\nnetwork_dim = 3\nmax_train_steps = 5\n")
    assert (options.format, options.config.network.rank) == ("sd-scripts TOML", 3)
