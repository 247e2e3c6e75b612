import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.acl.*;
import org.apache.kafka.common.resource.*;
import org.apache.kafka.common.serialization.*;

/** What tests ask of Kafka's own client library: one command a line on standard input, one answer a line on standard output. */
public class Driver {
    static String servers;
    static Admin admin;
    static KafkaProducer<byte[], byte[]> plain;
    static final Map<String, KafkaProducer<byte[], byte[]>> open = new HashMap<>();

    public static void main(String[] args) throws Exception {
        servers = args[0];
        admin = Admin.create(Map.of("bootstrap.servers", servers));
        plain = producer(null);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String answer;
            try {
                answer = "ok " + run(line.split("\t", -1));
            } catch (Exception e) {
                Throwable cause = e.getCause() == null ? e : e.getCause();
                answer = "error " + cause;
            }
            System.out.println(answer.replace('\n', ' '));
            System.out.flush();
        }
        System.exit(0);
    }

    static final Map<String, KafkaProducer<byte[], byte[]>> compressing = new HashMap<>();
    static long counted = 0;

    static KafkaProducer<byte[], byte[]> producer(String transaction) {
        return producer(transaction, Map.of("linger.ms", 0));
    }

    static KafkaProducer<byte[], byte[]> producer(String transaction, Map<String, Object> more) {
        Map<String, Object> config = new HashMap<>(more);
        config.put("bootstrap.servers", servers);
        if (transaction != null) {
            config.put("transactional.id", transaction);
        }
        return new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer());
    }

    static void send(KafkaProducer<byte[], byte[]> producer, String topic, int partition, int count, long age, String key) throws Exception {
        long time = System.currentTimeMillis() - age;
        List<java.util.concurrent.Future<RecordMetadata>> sent = new ArrayList<>();
        for (int n = 0; n < count; n++) {
            byte[] name = key.isEmpty() ? null : key.getBytes();
            sent.add(producer.send(new ProducerRecord<>(topic, partition, time, name, ("event " + n).getBytes())));
        }
        producer.flush();
        for (var one : sent) {
            one.get(60, TimeUnit.SECONDS);
        }
    }

    /** So many events of the type Counted of 40 streams, each with the next number. */
    static void count(KafkaProducer<byte[], byte[]> producer, String topic, int events) throws Exception {
        List<java.util.concurrent.Future<RecordMetadata>> sent = new ArrayList<>();
        for (int n = 0; n < events; n++) {
            long number = ++counted;
            var record = new ProducerRecord<>(topic, ("cart-" + number % 40).getBytes(), ("{\"n\": " + number + "}").getBytes());
            record.headers().add("type", "Counted".getBytes());
            sent.add(producer.send(record));
        }
        producer.flush();
        for (var one : sent) {
            one.get(60, TimeUnit.SECONDS);
        }
    }

    static final List<KafkaConsumer<byte[], byte[]>> members = new ArrayList<>();

    /** A member of a group, which a rebalance waits for as long as it is heard of. */
    static KafkaConsumer<byte[], byte[]> member(String group, String topic) {
        Map<String, Object> config = Map.of("bootstrap.servers", servers, "group.id", group, "enable.auto.commit", false,
            "max.poll.interval.ms", 3_600_000);
        var member = new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        member.subscribe(List.of(topic));
        return member;
    }

    /** A text in Base64; "-" is none. */
    static byte[] bytes(String text) {
        return text.equals("-") ? null : Base64.getDecoder().decode(text);
    }

    static String run(String[] c) throws Exception {
        switch (c[0]) {
            case "count": {
                // topic, events, compression; the first number, where it is not the next one
                if (c.length > 4) counted = Long.parseLong(c[4]) - 1;
                if (!compressing.containsKey(c[3])) {
                    compressing.put(c[3], producer(null, Map.of("linger.ms", 5, "compression.type", c[3])));
                }
                count(compressing.get(c[3]), c[1], Integer.parseInt(c[2]));
                return "";
            }
            case "transaction": {
                // id, topic, events, commit or abort
                if (!open.containsKey(c[1])) {
                    open.put(c[1], producer(c[1]));
                    open.get(c[1]).initTransactions();
                }
                open.get(c[1]).beginTransaction();
                count(open.get(c[1]), c[2], Integer.parseInt(c[3]));
                if (c[4].equals("commit")) open.get(c[1]).commitTransaction();
                else open.get(c[1]).abortTransaction();
                return "";
            }
            case "put": {
                // topic, partition, key, value; name and value of each header
                var record = new ProducerRecord<>(c[1], Integer.valueOf(c[2]), bytes(c[3]), bytes(c[4]));
                for (int n = 5; n + 1 < c.length; n += 2) record.headers().add(c[n], bytes(c[n + 1]));
                plain.send(record).get(60, TimeUnit.SECONDS);
                return "";
            }
            case "dump": {
                // Each record that a consumer gets, as key@offset in the order of its partition.
                Map<String, Object> config = Map.of("bootstrap.servers", servers, "isolation.level", "read_committed", "max.poll.records", 10_000);
                List<String> all = new ArrayList<>();
                try (var consumer = new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
                    List<TopicPartition> partitions = new ArrayList<>();
                    consumer.partitionsFor(c[1]).forEach(one -> partitions.add(new TopicPartition(c[1], one.partition())));
                    consumer.assign(partitions);
                    consumer.seekToBeginning(partitions);
                    var ends = consumer.endOffsets(partitions);
                    while (partitions.stream().anyMatch(one -> consumer.position(one) < ends.get(one))) {
                        for (var record : consumer.poll(Duration.ofMillis(200))) {
                            all.add((record.key() == null ? "" : new String(record.key())) + "@" + record.offset());
                        }
                    }
                }
                return String.join(",", all);
            }
            case "create": {
                Map<String, String> config = new HashMap<>();
                for (String pair : c[3].isEmpty() ? new String[0] : c[3].split(",")) {
                    config.put(pair.split("=")[0], pair.split("=")[1]);
                }
                admin.createTopics(List.of(new NewTopic(c[1], Integer.parseInt(c[2]), (short) 1).configs(config))).all().get();
                return "";
            }
            case "place": {
                // The replicas of each partition, the first of which shall lead: 1:2,2:3
                Map<Integer, List<Integer>> replicas = new HashMap<>();
                for (String one : c[2].split(",")) {
                    List<Integer> brokers = new ArrayList<>();
                    for (String id : one.split(":")) brokers.add(Integer.parseInt(id));
                    replicas.put(replicas.size(), brokers);
                }
                admin.createTopics(List.of(new NewTopic(c[1], replicas))).all().get();
                return "";
            }
            case "leaders": {
                List<String> all = new ArrayList<>();
                for (var one : admin.describeTopics(List.of(c[1])).allTopicNames().get().get(c[1]).partitions()) {
                    all.add((one.leader() == null ? "-" : one.leader().idString()) + "/" + one.isr().size());
                }
                return String.join(",", all);
            }
            case "coordinator":
                return admin.describeConsumerGroups(List.of(c[1])).all().get().get(c[1]).coordinator().idString();
            case "elect":
                // Every partition is led by the first of its replicas again, where that is in step.
                admin.electLeaders(org.apache.kafka.common.ElectionType.PREFERRED, null).partitions().get();
                return "";
            case "delete":
                admin.deleteTopics(List.of(c[1])).all().get();
                return "";
            case "topics":
                return String.join(",", new TreeSet<>(admin.listTopics().names().get()));
            case "partitions":
                admin.createPartitions(Map.of(c[1], NewPartitions.increaseTo(Integer.parseInt(c[2])))).all().get();
                return "";
            case "produce":
                send(plain, c[1], Integer.parseInt(c[2]), Integer.parseInt(c[3]), Long.parseLong(c[4]), c[5]);
                return "";
            case "begin": {
                KafkaProducer<byte[], byte[]> producer = open.get(c[1]);
                if (producer == null) {
                    producer = producer(c[1]);
                    producer.initTransactions();
                    open.put(c[1], producer);
                }
                producer.beginTransaction();
                send(producer, c[2], Integer.parseInt(c[3]), Integer.parseInt(c[4]), 0, "");
                return "";
            }
            case "end": {
                if (c[2].equals("commit")) open.get(c[1]).commitTransaction();
                else open.get(c[1]).abortTransaction();
                return "";
            }
            case "commit":
                admin.alterConsumerGroupOffsets(c[1], Map.of(new TopicPartition(c[2], Integer.parseInt(c[3])),
                    new OffsetAndMetadata(Long.parseLong(c[4])))).all().get();
                return "";
            case "consume": {
                Map<String, Object> config = Map.of("bootstrap.servers", servers, "group.id", c[1], "enable.auto.commit", false,
                    "auto.offset.reset", "earliest", "isolation.level", "read_committed", "max.poll.records", 1);
                int left = Integer.parseInt(c[3]);
                try (var consumer = new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
                    consumer.subscribe(List.of(c[2].split(",")));
                    long until = System.currentTimeMillis() + 60_000;
                    while (left > 0) {
                        if (System.currentTimeMillis() > until) throw new IllegalStateException(left + " records did not come");
                        left -= consumer.poll(Duration.ofMillis(200)).count();
                        consumer.commitSync();
                    }
                }
                return "";
            }
            case "join": {
                // group, topic: a member that has partitions, and from then on neither polls nor leaves.
                var member = member(c[1], c[2]);
                long until = System.currentTimeMillis() + 60_000;
                while (member.assignment().isEmpty()) {
                    if (System.currentTimeMillis() > until) throw new IllegalStateException("no partition was assigned");
                    member.poll(Duration.ofMillis(200));
                }
                members.add(member);
                return "";
            }
            case "ask to join": {
                // group, topic: a further member, which waits until the others give up partitions.
                var member = member(c[1], c[2]);
                members.add(member);
                var waits = new Thread(() -> member.poll(Duration.ofDays(1)));
                waits.setDaemon(true);
                waits.start();
                return "";
            }
            case "members": {
                var group = admin.describeConsumerGroups(List.of(c[1])).all().get().get(c[1]);
                return group.groupState() + " " + group.members().size();
            }
            case "deletegroup":
                admin.deleteConsumerGroups(List.of(c[1])).all().get();
                return "";
            case "deleterecords":
                admin.deleteRecords(Map.of(new TopicPartition(c[1], Integer.parseInt(c[2])),
                    RecordsToDelete.beforeOffset(Long.parseLong(c[3])))).all().get();
                return "";
            case "offsets": {
                TopicPartition partition = new TopicPartition(c[1], Integer.parseInt(c[2]));
                long first = admin.listOffsets(Map.of(partition, OffsetSpec.earliest())).all().get().get(partition).offset();
                long end = admin.listOffsets(Map.of(partition, OffsetSpec.latest())).all().get().get(partition).offset();
                return first + " " + end;
            }
            case "lag": {
                // What a group has not committed of a topic: the ends of all partitions without what it has committed.
                long behind = 0;
                var committed = admin.listConsumerGroupOffsets(c[1]).partitionsToOffsetAndMetadata().get();
                for (var one : admin.describeTopics(List.of(c[2])).allTopicNames().get().get(c[2]).partitions()) {
                    TopicPartition partition = new TopicPartition(c[2], one.partition());
                    var done = committed.get(partition);
                    behind += admin.listOffsets(Map.of(partition, OffsetSpec.latest())).all().get().get(partition).offset()
                        - (done == null ? 0 : done.offset());
                }
                return Long.toString(behind);
            }
            case "scram": {
                ScramMechanism mechanism = ScramMechanism.fromMechanismName(c[2]);
                admin.alterUserScramCredentials(List.of(new UserScramCredentialUpsertion(c[1],
                    new ScramCredentialInfo(mechanism, 4096), c[3]))).all().get();
                return "";
            }
            case "allow": {
                ResourceType type = c[2].equals("topic") ? ResourceType.TOPIC : ResourceType.GROUP;
                admin.createAcls(List.of(new AclBinding(new ResourcePattern(type, c[3], PatternType.LITERAL),
                    new AccessControlEntry("User:" + c[1], "*", AclOperation.fromString(c[4]), AclPermissionType.ALLOW)))).all().get();
                return "";
            }
            default:
                throw new IllegalArgumentException("unknown command " + c[0]);
        }
    }
}
