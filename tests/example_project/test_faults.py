"""A site for the whole file, and tests that break something on purpose."""

from pathlib import Path

import pytest
from shop import load_product

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def site(staleproof_factory):
    with staleproof_factory.make(
        schema=HERE / "schema.sql", views=HERE / "views.yaml", loaders={"product": load_product}, proxied=True
    ) as site:
        site.change_and_wait("INSERT INTO products SELECT i, 'lamp' FROM generate_series(1, 20) i")
        yield site


def test_the_view_names_every_table_that_the_loader_reads(site):
    site.assert_covered("product", 1)


def test_a_killed_capture_loses_no_review(site):
    site.assert_fresh("product", 1)
    site.faults.kill_capture()
    site.database.execute("INSERT INTO reviews VALUES (1, 1, 5)")
    assert site.is_cached("product", 1, region="eu")  # stale until the next capture has caught up
    site.start("capture")
    site.assert_fresh("product", 1)


def test_a_region_that_cannot_be_reached_is_right_when_it_comes_back(site):
    for product_id in range(1, 21):
        site.read("product", product_id, region="us")
    site.faults.proxy("us").half_open()
    site.database.execute("UPDATE products SET name = 'desk lamp' WHERE id = 2")
    assert site.read("product", 2, region="us")["name"] == "desk lamp"  # from the database
    site.faults.proxy("us").heal()
    site.assert_all_fresh(regions=["us"], at_least=15)
