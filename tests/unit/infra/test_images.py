"""Which image plays a server, and what a recipe's name depends on; no Docker Engine is asked."""

from __future__ import annotations

import pytest
from docker.errors import APIError, ImageNotFound

from infra.images import roles
from infra.prerequisites import MissingPrerequisite

POSTGRES = roles.ROLES["postgres"]
OWN = roles.local_tag(POSTGRES, "bookworm")


class FakeImages:
    def __init__(self, present: set[str], offered: set[str]) -> None:
        self.images, self._present, self._offered = self, present, offered

    def get(self, image):
        if image not in self._present:
            raise ImageNotFound(image)

    def get_registry_data(self, image):
        if image not in self._offered:
            raise APIError("no such host")


@pytest.fixture(autouse=True)
def debian(monkeypatch):
    monkeypatch.setattr(roles, "debian_suite", lambda: "bookworm")
    for role in roles.ROLES.values():
        monkeypatch.delenv(role.variable, raising=False)


@pytest.mark.parametrize(
    ("present", "offered", "chosen"),
    [
        ({POSTGRES.official, OWN}, {POSTGRES.official}, POSTGRES.official),
        ({OWN}, {POSTGRES.official}, OWN),  # what is there is taken before what would have to be pulled
        (set(), {POSTGRES.official}, POSTGRES.official),
    ],
)
def test_an_image_that_is_there_comes_before_one_that_is_offered(present, offered, chosen):
    assert roles.choose(FakeImages(present, offered), POSTGRES, {}) == chosen


def test_without_any_image_the_remedy_is_said():
    with pytest.raises(MissingPrerequisite, match=r"python -m infra\.images up.*STALEPROOF_IMAGE_POSTGRES"):
        roles.choose(FakeImages(set(), set()), POSTGRES, {})


def test_an_image_of_another_recipe_is_not_taken_for_ours():
    with pytest.raises(MissingPrerequisite):
        roles.choose(FakeImages({roles.local_tag(POSTGRES, "trixie")}, set()), POSTGRES, {})


def test_one_that_was_asked_for_is_not_looked_for(monkeypatch):
    nothing = FakeImages(set(), set())
    monkeypatch.setenv("STALEPROOF_IMAGE_POSTGRES", "postgres:16")
    assert roles.choose(nothing, POSTGRES, {}) == "postgres:16"
    assert roles.choose(nothing, POSTGRES, {"postgres": "postgres:17"}) == "postgres:17"


def test_a_changed_recipe_or_release_changes_the_name_and_nothing_else_does(tmp_path, monkeypatch):
    for role in (*roles.ROLES.values(), roles.PYTHON):
        for name in role.files:
            place = tmp_path / "images" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.resolve().parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((roles.RECIPES / name).read_bytes())
    monkeypatch.setattr(roles, "RECIPES", tmp_path / "images")
    assert roles.local_tag(POSTGRES, "bookworm") == OWN
    for role in (*roles.ROLES.values(), roles.PYTHON):
        for name in role.files:
            before = roles.local_tag(role, "bookworm")
            with (tmp_path / "images" / name).open("a") as recipe:
                recipe.write("# changed\n")
            assert roles.local_tag(role, "bookworm") != before
    assert roles.local_tag(POSTGRES, "trixie") != roles.local_tag(POSTGRES, "bookworm")


@pytest.mark.parametrize(
    ("text", "suite"),
    [
        ("ID=debian\nVERSION_CODENAME=bookworm\n", "bookworm"),
        ('NAME="Debian"\nID="debian"\nVERSION_CODENAME="trixie"\n', "trixie"),
        ("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n", None),
        ("ID=debian\n", None),
    ],
)
def test_only_debian_has_a_release_to_build_from(tmp_path, monkeypatch, text, suite):
    monkeypatch.undo()
    (tmp_path / "os-release").write_text(text)
    assert roles.debian_suite(tmp_path / "os-release") == suite
    assert roles.debian_suite(tmp_path / "none") is None
