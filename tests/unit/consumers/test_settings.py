"""Settings: what a file, the environment and secret files say together, and how every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc.errors import ConfigError
from consumers.settings import Settings, read_settings, settings_path

MINIMAL = """\
source:
  name: shop
  dsn: postgresql://ann:hunter2@db/shop
kafka:
  bootstrap_servers: kafka:9092
regions:
  eu:
    url: redis://:hunter2@eu:6379/0
  us-east:
    url: redis://us:6379/0
"""


def settings(directory: Path, text: str = MINIMAL, **environment: str) -> Settings:
    path = directory / "staleproof.yaml"
    path.write_text(text, encoding="utf-8")
    return read_settings(path, environment)


def complaint(directory: Path, text: str = MINIMAL, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(directory, text, **environment)
    message = str(caught.value)
    assert "hunter2" not in message
    assert "\n" not in message
    return message.replace(f"{directory}/", "")


def test_a_minimal_file_is_enough(tmp_path):
    loaded = settings(tmp_path)
    assert loaded.source.dsn.get_secret_value() == "postgresql://ann:hunter2@db/shop"
    assert loaded.kafka.partitions == 4
    assert list(loaded.regions) == ["eu", "us-east"]
    assert loaded.views == tmp_path / "views.yaml"


def test_secrets_do_not_show_in_the_settings_text(tmp_path):
    assert "hunter2" not in repr(settings(tmp_path))


def test_paths_are_relative_to_the_settings_file(tmp_path):
    (tmp_path / "ca.pem").write_text("x")
    text = (
        MINIMAL.replace("9092\n", "9092\n  security_protocol: SSL\n  ssl_ca_location: ca.pem\n") + "views: sub/v.yaml\n"
    )
    loaded = settings(tmp_path, text)
    assert loaded.views == tmp_path / "sub/v.yaml"
    assert loaded.kafka.ssl_ca_location == tmp_path / "ca.pem"


def test_a_relative_settings_file_gives_absolute_paths(tmp_path, monkeypatch):
    settings(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert read_settings(Path("staleproof.yaml"), {}).views == tmp_path / "views.yaml"


def test_a_missing_file_points_to_init(tmp_path):
    with pytest.raises(ConfigError, match="staleproof init"):
        read_settings(tmp_path / "staleproof.yaml", {})


def test_the_option_wins_over_the_environment_over_the_default():
    assert settings_path(Path("a"), {"STALEPROOF_CONFIG": "b"}) == Path("a")
    assert settings_path(None, {"STALEPROOF_CONFIG": "b"}) == Path("b")
    assert settings_path(None, {}) == Path("staleproof.yaml")


def test_the_environment_overrides_the_file(tmp_path):
    loaded = settings(
        tmp_path,
        STALEPROOF_SOURCE__DSN="postgresql://other/",
        STALEPROOF_REGIONS__US_EAST__TIMEOUT_MS="77",
        STALEPROOF_WORKER__BATCH_RECORDS="9",
        STALEPROOF_VIEWS="w.yaml",
    )
    assert loaded.source.dsn.get_secret_value() == "postgresql://other/"
    assert loaded.regions["us-east"].timeout_ms == 77
    assert loaded.worker.batch_records == 9
    assert loaded.views == tmp_path / "w.yaml"


def test_other_variables_with_our_prefix_are_not_settings(tmp_path):
    settings(tmp_path, STALEPROOF_FAILPOINTS="x", STALEPROOF_CONFIG="y", STALEPROOF="z", OTHER__X="w")


def test_a_secret_file_gives_its_stripped_content(tmp_path):
    (tmp_path / "dsn").write_text("  postgresql://filed/\n")
    loaded = settings(tmp_path, MINIMAL.replace("dsn: postgresql://ann:hunter2@db/shop", "dsn_file: dsn"))
    assert loaded.source.dsn.get_secret_value() == "postgresql://filed/"


@pytest.mark.parametrize("name", ["url", "password"])
def test_secret_files_work_inside_regions(tmp_path, name):
    (tmp_path / "secret").write_text("redis://filed:1/0")
    text = MINIMAL.replace(
        "    url: redis://us:6379/0\n",
        "    url_file: secret\n" if name == "url" else "    url: redis://us\n    password_file: secret\n",
    )
    secret = getattr(settings(tmp_path, text).regions["us-east"], name)
    assert secret.get_secret_value() == "redis://filed:1/0"


def test_a_secret_file_of_kafka(tmp_path):
    (tmp_path / "pw").write_text("pw")
    sasl = (
        "9092\n  security_protocol: SASL_SSL\n  sasl_mechanism: PLAIN\n  sasl_username: u\n  sasl_password_file: pw\n"
    )
    assert settings(tmp_path, MINIMAL.replace("9092\n", sasl)).kafka.sasl_password.get_secret_value() == "pw"


def test_the_environment_may_name_a_secret_file_instead_of_the_secret_in_the_file(tmp_path):
    (tmp_path / "dsn").write_text("postgresql://filed/")
    assert settings(tmp_path, STALEPROOF_SOURCE__DSN_FILE="dsn").source.dsn.get_secret_value() == "postgresql://filed/"


def test_both_a_secret_and_its_file_are_refused(tmp_path):
    text = MINIMAL.replace("kafka:\n", "  dsn_file: x\nkafka:\n")
    assert complaint(tmp_path, text) == (
        "staleproof.yaml:4: source.dsn_file: dsn is given too: keep one of dsn and dsn_file"
    )
    both = complaint(tmp_path, STALEPROOF_SOURCE__DSN="hunter2", STALEPROOF_SOURCE__DSN_FILE="x")
    assert both == "STALEPROOF_SOURCE__DSN and STALEPROOF_SOURCE__DSN_FILE say the same: unset one of them"


def test_a_secret_file_that_is_missing_or_empty_is_named(tmp_path):
    text = MINIMAL.replace("dsn: postgresql://ann:hunter2@db/shop", "dsn_file: gone")
    assert complaint(tmp_path, text).startswith(
        "staleproof.yaml:3: source.dsn_file: the secret file gone cannot be read"
    )
    (tmp_path / "gone").write_text("\n")
    assert "is empty" in complaint(tmp_path, text)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  name: shop", "  nmae: shop", 'staleproof.yaml:2: source.nmae: unknown setting; did you mean "name"?'),
        ("    url: redis://us", "    ulr: redis://us", 'staleproof.yaml:10: regions.us-east.ulr: unknown setting; did you mean "url"?'),
        ("  bootstrap_servers: kafka:9092", "  {}", "staleproof.yaml:4: kafka.bootstrap_servers: is missing"),
        ("kafka:\n  bootstrap_servers: kafka:9092\n", "", "staleproof.yaml:1: kafka: is missing: add `kafka:`"),
        ("kafka:9092", "kafka:9092\n  partitions: many", "staleproof.yaml:6: kafka.partitions: should be a valid integer"),
        ("kafka:9092", "kafka:9092\n  partitions: 0", "staleproof.yaml:6: kafka.partitions: should be greater than or equal to 1, not 0"),
        ("name: shop", "name: Shop!", "staleproof.yaml:2: source.name: should match pattern '^[a-z][a-z0-9_-]{0,47}$', not 'Shop!'"),
        ("  eu:", "  EU:", "staleproof.yaml:7: regions.EU: should match pattern"),
        ("redis://us:6379/0", "us:6379/hunter2", "staleproof.yaml:10: regions.us-east.url: is not a Redis URL"),
        ("redis://us:6379/0", "redis://:hunter2/x@us:6379", "staleproof.yaml:10: regions.us-east.url: is not a Redis URL"),
        ("dsn: postgresql://ann:hunter2@db/shop", "dsn: {a: hunter2}", "staleproof.yaml:3: source.dsn: should be text"),
        ("dsn: postgresql://ann:hunter2@db/shop", "dsn: *hunter2", 'staleproof.yaml:3: a value that begins with "*"'),
        ("dsn: postgresql://ann:hunter2@db/shop", "dsn: !hunter2 x", 'staleproof.yaml:3: source.dsn: begins with "!"'),
        ("dsn: postgresql://ann:hunter2@db/shop", "dsn: @hunter2", "staleproof.yaml:3: found character '@'"),
        ("dsn: postgresql://ann:hunter2@db/shop", "dsn: hunter2: x", "staleproof.yaml:3: is not YAML"),
        ("source:\n  name: shop\n  dsn: postgresql://ann:hunter2@db/shop", "source: hunter2", "staleproof.yaml:1: source: should be a mapping"),
        ("  eu:\n", "  us-east:\n", "staleproof.yaml:9: regions.us-east: is given twice, first on line 7"),
        ("kafka:9092", "kafka:9092\n  ssl_ca_location: gone.pem", "staleproof.yaml:6: kafka.ssl_ca_location: there is no file"),
        ("kafka:9092", "kafka:9092\n  security_protocol: SASL_SSL", "staleproof.yaml:4: kafka: security_protocol SASL_SSL needs"),
        ("kafka:9092", "kafka:9092\n  sasl_password: hunter2", "staleproof.yaml:4: kafka: sasl_* has no effect"),
        ("kafka:9092", "kafka:9092\n  security_protocol: TLS", "staleproof.yaml:6: kafka.security_protocol: should be 'PLAINTEXT', 'SSL'"),
        ("redis://us:6379/0", "redis://:hunter2@eu:6379/0", "staleproof.yaml:1: two regions have the same url"),
        ("redis://us:6379/0", "redis://a:1,b:2", "staleproof.yaml:9: regions.us-east: url names several servers: set topology"),
        ("redis://us:6379/0", "redis://a:1,,b:2", "staleproof.yaml:10: regions.us-east.url: is not a Redis URL"),
        ("redis://us:6379/0", "redis://a:1,b:x", "staleproof.yaml:10: regions.us-east.url: is not a Redis URL"),
        ("redis://us:6379/0", "redis://a\n    topology: ring", "staleproof.yaml:11: regions.us-east.topology: should be 'single', 'sentinel' or 'cluster', not 'ring'"),
        ("redis://us:6379/0", "redis://a/1\n    topology: cluster", "staleproof.yaml:9: regions.us-east: a cluster has database 0 only"),
        ("redis://us:6379/0", "unix:///r\n    topology: cluster", "staleproof.yaml:9: regions.us-east: topology cluster is reached over the network"),
        ("redis://us:6379/0", "redis://a\n    topology: sentinel", "staleproof.yaml:9: regions.us-east: topology sentinel needs the primary's name: add sentinel_master"),
        ("redis://us:6379/0", "redis://a\n    sentinel_master: m", "staleproof.yaml:9: regions.us-east: sentinel_* has no effect"),
        ("kafka:9092", "kafka:9092\n  sasl_pasword: hunter2", 'staleproof.yaml:6: kafka.sasl_pasword: unknown setting; did you mean "sasl_password"?'),
        ("kafka:9092", "kafka:9092\n  partitions: 2\nwroker: {}", 'staleproof.yaml:7: wroker: unknown setting; did you mean "worker"?'),
    ],
)  # fmt: skip
def test_a_mistake_names_line_path_and_remedy(tmp_path, old, new, expected):
    assert old in MINIMAL
    assert complaint(tmp_path, MINIMAL.replace(old, new)).startswith(expected)


def test_several_mistakes_are_counted_and_the_first_is_named(tmp_path):
    text = MINIMAL.replace("name: shop", "name: shop\n  x: 1\n  y: 2")
    assert complaint(tmp_path, text).startswith("staleproof.yaml:3: source.x: ")
    assert complaint(tmp_path, text).endswith("(and 1 more to mend)")


def test_a_mistake_in_the_environment_names_the_variable(tmp_path):
    assert complaint(tmp_path, STALEPROOF_KAFKA__PARTITIONS="x").startswith(
        "environment variable STALEPROOF_KAFKA__PARTITIONS: kafka.partitions: should be a valid integer"
    )
    assert complaint(tmp_path, STALEPROOF_KAFKA__PARTITION="1").startswith(
        'environment variable STALEPROOF_KAFKA__PARTITION: kafka.partition: unknown setting; did you mean "partitions"?'
    )
    assert complaint(tmp_path, STALEPROOF_SOURCE__DSN__X="hunter2").startswith(
        "staleproof.yaml:3: source.dsn: should be a"
    )


@pytest.mark.parametrize("text", ["", "- a\n", "just text\n", "\x00", "a: [", "1: 2", "? [a]\n: b\n"])
def test_what_is_not_a_settings_file_is_refused_in_one_line(tmp_path, text):
    assert complaint(tmp_path, text).startswith("staleproof.yaml:")


def test_deep_nesting_and_alias_bombs_are_refused(tmp_path):
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    assert "make it smaller" in complaint(tmp_path, bomb)
    assert "level" in complaint(tmp_path, "a: " + "[" * 60 + "]" * 60)
    assert "level" in complaint(tmp_path, "a: " + "[" * 6000 + "]" * 6000)
    assert "level" in complaint(tmp_path, "a: &a [*a]")


def test_merge_keys_share_defaults_between_regions(tmp_path):
    text = MINIMAL.replace("  eu:\n", "  eu: &defaults\n    timeout_ms: 50\n").replace(
        "  us-east:\n", "  us-east:\n    <<: *defaults\n"
    )
    loaded = settings(tmp_path, text)
    assert loaded.regions["us-east"].timeout_ms == 50
    assert loaded.regions["us-east"].url.get_secret_value() == "redis://us:6379/0"
