from pathlib import Path

from shop import load_product

HERE = Path(__file__).parent


def test_a_price_reaches_every_region(staleproof):
    site = staleproof(schema=HERE / "schema.sql", views=HERE / "views.yaml", loaders={"product": load_product})
    site.change_and_wait("INSERT INTO products VALUES (7, 'lamp')")
    site.assert_fresh("product", 7)
    site.change_and_wait("INSERT INTO prices VALUES (7, 'EUR', 1900)")
    site.assert_fresh("product", 7)
