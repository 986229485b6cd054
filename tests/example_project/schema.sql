CREATE TABLE products (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE prices (product_id int, currency text, cents int NOT NULL, PRIMARY KEY (product_id, currency));
CREATE TABLE reviews (id int PRIMARY KEY, product_id int NOT NULL, stars int NOT NULL);
ALTER TABLE reviews REPLICA IDENTITY FULL; -- a deleted review must still say whose it was
