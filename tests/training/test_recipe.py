"""Recipes: what ships is valid, and what is wrong is named."""

import pytest

from hce_engine.errors import RecipeError
from hce_engine.training.recipe import available, load_recipe, parse

MINIMAL = {"arch": "resnet20", "o": {"epochs": 1, "lr": 0.1}, "q": {"epochs": 1, "lr": 0.1}, "s": {"epochs": 1, "lr": 0.1}}


def changed(section, **values):
    return {**MINIMAL, section: {**MINIMAL.get(section, {}), **values}}


@pytest.mark.parametrize("name", available())
def test_shipped_recipes_load_by_name(name):
    recipe = load_recipe(name)
    assert recipe == load_recipe(f"{name}.toml")
    assert recipe.name == name and (recipe.s is None or 0 < recipe.s.flops_ratio <= 0.72)


def test_the_recipes_that_must_ship():
    assert {"quickstart-digits", "hce-resnet20-cifar10", "hce-resnet20-cifar10-short", "hce-resnet56-cifar10"} <= set(available())
    assert load_recipe("hce-resnet20-cifar10-short").checkpoint_required


def test_whole_numbers_serve_as_floats_and_the_digest_does_not_mind():
    a, b = parse(changed("o", lr=1), "x"), parse(changed("o", lr=1.0), "x")
    assert a == b and a.digest == b.digest and a.digest != parse(changed("o", lr=2), "x").digest


def test_members_are_the_sections_that_are_there():
    assert parse(MINIMAL, "x").members == ("o", "q", "s")
    baseline = parse({k: v for k, v in MINIMAL.items() if k not in "qs"}, "x")
    assert baseline.members == ("o",) and baseline.q is None and "q" not in baseline.to_dict()
    assert parse({**changed("objective", reading="kd"), "q": MINIMAL["q"]}, "x").members == ("o", "q", "s")


def test_a_member_depends_on_its_own_keys_and_on_those_before_it():
    base = parse(MINIMAL, "x")
    other_q, other_s = parse(changed("q", lr=0.2), "y"), parse(changed("objective", reading="V3"), "y")
    digests = lambda r: [r.member_digest(name) for name in "oqs"]  # noqa: E731
    assert digests(base)[0] == digests(other_q)[0] and digests(base)[1:] != digests(other_q)[1:]
    assert digests(base)[:2] == digests(other_s)[:2] and digests(base)[2] != digests(other_s)[2]
    assert parse({**MINIMAL, "seed": 1}, "x").member_digest("o") != base.member_digest("o")
    assert digests(parse(changed("data", workers=4), "x")) == digests(base), "who decodes images changes none of them"
    # A key that is written out at its default makes no other member.
    assert digests(parse(changed("o", momentum=0.9), "x")) == digests(base)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**MINIMAL, "speed": 1}, "'speed'"),
        (changed("q", weight_bits=9), "q.weight_bits 2 to 8, got 9"),
        (changed("q", weight_bits=4.0), "q.weight_bits as int"),
        (changed("o", epochs=True), "o.epochs as int"),
        (changed("o", lr=float("nan")), "finite"),
        (changed("o", lr=-1), "o.lr above 0"),
        (changed("o", leraning_rate=1), "'leraning_rate'"),
        (changed("s", flops_ratio=56.8), "s.flops_ratio above 0 and at most 1"),
        (changed("objective", reading="V9"), "one of V0, V1, V2, V3, V4, V4p, V5, V6, kd"),
        (changed("objective", w_ce=0, w_diff=0), "both 0"),
        (changed("q", epochs=0), "frozen_norm_epochs"),
        ({k: v for k, v in MINIMAL.items() if k != "arch"}, "expected arch"),
        ({**MINIMAL, "s": {}}, "expected s.epochs"),
        ({k: v for k, v in MINIMAL.items() if k != "q"}, r"reading = kd in a recipe without \[q\], got V5"),
        (changed("q", progressive=[4, 5]), "falling widths"),
        (changed("q", progressive=[9]), "falling widths"),
        (changed("q", progressive=5), "q.progressive as a list"),
        (changed("q", progressive=["5"]), r"q.progressive\[0\] as int"),
        (changed("s", criterion="snip"), "for s.granularity = filter, got snip"),
        (changed("s", granularity="weight", criterion="fpgm"), "l1, snip for s.granularity = weight"),
        (changed("s", granularity="weight", pruning="soft"), "s.pruning = hard for s.granularity = weight"),
        (changed("s", allocation="stages"), "stage_keep exactly with"),
        (changed("s", stage_keep=[1, 2]), "stage_keep exactly with"),
        ({**MINIMAL, "o": 3}, r"\[o\] as a table"),
    ],
)
def test_what_is_wrong_is_named(values, message):
    with pytest.raises(RecipeError, match=message):
        parse(values, "x")


def test_a_recipe_extends_another(tmp_path):
    (tmp_path / "base.toml").write_text('extends = "hce-resnet20-cifar10"\n[q]\nlr = 0.5\n')
    (tmp_path / "own.toml").write_text('extends = "base.toml"\ndrop = ["s"]\n[q]\nepochs = 7\n')
    shipped, own = load_recipe("hce-resnet20-cifar10"), load_recipe(tmp_path / "own.toml")
    assert own.members == ("o", "q") and own.name == "own"
    assert (own.q.epochs, own.q.lr, own.q.distill) == (7, 0.5, shipped.q.distill)
    assert own.member_digest("o") == shipped.member_digest("o")
    for text, message in (("extends = 3", "extends as the name"), ('extends = "own.toml"', "own.toml twice"),
                          ('extends = "base.toml"\ndrop = ["o"]', "drop as a list"), ('extends = "none.toml"', "readable TOML")):
        (tmp_path / "own.toml").write_text(text)
        with pytest.raises(RecipeError, match=message):
            load_recipe(tmp_path / "own.toml")


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match=r"one of .*quickstart-digits"):
        load_recipe(tmp_path / "missing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("arch = [")
    with pytest.raises(RecipeError, match="expected TOML"):
        load_recipe(broken)
