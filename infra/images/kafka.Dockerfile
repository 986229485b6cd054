# Apache Kafka's jars (infra/kafka/pom.xml) on Debian's Java, configured by KAFKA_* as apache/kafka is.
ARG BASE
FROM ${BASE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends default-jre-headless \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb \
    && useradd --system --home-dir /var/lib/kafka --create-home kafka
COPY libs /opt/kafka/libs
COPY kafka-entry.sh /opt/
USER kafka
WORKDIR /var/lib/kafka
CMD ["sh", "/opt/kafka-entry.sh"]
