from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner import murmur2

from consumers.kafka import client_config, partition_of
from consumers.settings import KafkaSettings


@given(st.binary(max_size=40), st.integers(1, 1000))
def test_keys_are_placed_where_javas_clients_place_them(key, partitions):
    assert partition_of(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions


def test_known_hashes_of_javas_own_tests():
    hashes = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    for key, java in hashes.items():
        assert partition_of(key, 1_000_003) == (java & 0x7FFFFFFF) % 1_000_003


def test_settings_become_librdkafkas_names_and_unset_ones_are_left_out():
    plain = client_config(KafkaSettings(bootstrap_servers="b:9092"))
    assert plain["bootstrap.servers"] == "b:9092"
    assert not [name for name in plain if name.startswith(("sasl.", "ssl."))]
    secure = client_config(
        KafkaSettings(
            bootstrap_servers="b:9093",
            security_protocol="SASL_SSL",
            sasl_mechanism="SCRAM-SHA-512",
            sasl_username="u",
            sasl_password="p",
            ssl_ca_location=Path("ca.pem"),
        )
    )
    assert (secure["sasl.password"], secure["sasl.mechanism"], secure["ssl.ca.location"]) == (
        "p",
        "SCRAM-SHA-512",
        "ca.pem",
    )
