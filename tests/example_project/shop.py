"""What the shop caches: a product's page."""


def load_product(connection, product_id):
    product = connection.execute("SELECT name FROM products WHERE id = %s", [product_id]).fetchone()
    if product is None:
        return None
    prices = connection.execute("SELECT currency, cents FROM prices WHERE product_id = %s", [product_id]).fetchall()
    stars = connection.execute("SELECT stars FROM reviews WHERE product_id = %s ORDER BY id", [product_id]).fetchall()
    return {"name": product[0], "prices": dict(prices), "stars": [row[0] for row in stars]}
