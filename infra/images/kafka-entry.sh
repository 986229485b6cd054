#!/bin/sh
# Turns KAFKA_* into server.properties as the official image does (KAFKA_NODE_ID=1 is node.id=1), formats the data
# directory on the first start and becomes the broker. CLUSTER_ID, KAFKA_HEAP_OPTS and KAFKA_JVM_PERFORMANCE_OPTS mean
# what they mean there.
set -eu
java="java ${KAFKA_HEAP_OPTS:-} ${KAFKA_JVM_PERFORMANCE_OPTS:-} -Djava.awt.headless=true"
cat > log4j2.properties <<'END'
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %m (%c)%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
END
echo "log.dirs=$PWD/data" > server.properties
env | grep '^KAFKA_' | grep -vE '^KAFKA_(HEAP_OPTS|JVM_PERFORMANCE_OPTS)=' | while IFS='=' read -r name value; do
    echo "$(echo "${name#KAFKA_}" | tr 'A-Z_' 'a-z.')=$value"
done >> server.properties
set -- -Dlog4j2.configurationFile=log4j2.properties -cp '/opt/kafka/libs/*'
# shellcheck disable=SC2086  # options are words
$java "$@" kafka.tools.StorageTool format --ignore-formatted \
    --cluster-id "${CLUSTER_ID:-5L6g3nShT-eMCtK--X86sw}" --config server.properties
# shellcheck disable=SC2086
exec $java "$@" kafka.Kafka server.properties
