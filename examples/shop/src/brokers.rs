//! The brokers that the outbox's relay sends to: Kafka for other teams and other read models, RabbitMQ for work that is to be done once.

use std::time::Duration;

use futures::future::try_join_all;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    },
    runtime::default_runtime,
    tcp::OwnedTLSConfig,
    types::{AMQPValue, FieldTable, LongString},
};
use rdkafka::{
    ClientConfig,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer as _},
};
use thiserror::Error;

use crate::outbox::{Destination, Message, Publisher};

/// How long Kafka may take over a transaction's beginning and end.
const WITHIN: Duration = Duration::from_secs(20);
/// RabbitMQ may leave a connection that is being made without an answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// Where messages go that cannot be handled.
const DEAD_LETTERS: &str = "shop.dead-letters";

/// Why nothing was sent.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// Kafka is away or refuses, or another relay has taken over.
    #[error("Kafka: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    /// RabbitMQ is away, or refuses.
    #[error("RabbitMQ: {0}")]
    RabbitMq(#[from] lapin::Error),
    /// RabbitMQ did not take a message.
    #[error("RabbitMQ did not keep the message {0}")]
    NotKept(String),
    /// A message cannot be written as JSON.
    #[error("the body of a message: {0}")]
    Body(#[from] serde_json::Error),
    /// It took too long.
    #[error("{0} did not answer within {within:?}", within = WITHIN)]
    TooLate(&'static str),
}

/// Connections to both.
pub struct Brokers {
    kafka: FutureProducer,
    rabbitmq: Channel,
    /// Ends when it is dropped, and the channel with it.
    _connection: Connection,
}

impl Brokers {
    /// Connects, and declares the queue of notifications. A relay that has done so before can no longer send to Kafka: its transactions are refused from now on, even if it
    /// only slept.
    ///
    /// # Errors
    /// When one of them is away, or refuses.
    pub async fn connect(kafka: &str, rabbitmq: &str, authority: Option<&str>) -> Result<Self, BrokerError> {
        let producer: FutureProducer =
            ClientConfig::new().set("bootstrap.servers", kafka).set("transactional.id", "shop-outbox").create()?;
        let connection = connect(rabbitmq, authority).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        declare(&channel, crate::orders::NOTIFICATIONS).await?;
        let producer = blocking(producer, |producer| producer.init_transactions(WITHIN)).await?;
        Ok(Self { kafka: producer, rabbitmq: channel, _connection: connection })
    }

    /// One transaction: readers see all of these records or none, in this order.
    async fn to_kafka(&self, messages: &[&Message]) -> Result<(), BrokerError> {
        if messages.is_empty() {
            return Ok(());
        }
        self.kafka.begin_transaction()?;
        let sent = messages.iter().map(|message| self.enqueue(message)).collect::<Result<Vec<_>, _>>();
        let sent = match sent {
            Ok(deliveries) => try_join_all(deliveries).await.map(drop).map_err(|_| BrokerError::TooLate("Kafka")),
            Err(error) => Err(error),
        };
        match sent {
            Ok(()) => blocking(self.kafka.clone(), |producer| producer.commit_transaction(WITHIN)).await.map(drop),
            Err(error) => {
                // The first error is the one to tell.
                let _ = blocking(self.kafka.clone(), |producer| producer.abort_transaction(WITHIN)).await;
                Err(error)
            }
        }
    }

    /// Puts a record into the client's queue, which keeps the order.
    fn enqueue(&self, message: &Message) -> Result<rdkafka::producer::DeliveryFuture, BrokerError> {
        let body = serde_json::to_vec(&message.body)?;
        let header = |key, value| Header { key, value: Some(value) };
        let headers = OwnedHeaders::new().insert(header("type", &message.type_)).insert(header("id", &message.id));
        let record = FutureRecord::to(&message.address).key(&message.key).payload(&body).headers(headers);
        self.kafka.send_result(record).map_err(|(error, _)| error.into())
    }

    async fn to_rabbitmq(&self, message: &Message) -> Result<(), BrokerError> {
        let body = serde_json::to_vec(&message.body)?;
        let properties = BasicProperties::default()
            .with_message_id(message.id.as_str().into())
            .with_type(message.type_.as_str().into())
            .with_content_type("application/json".into())
            .with_delivery_mode(2);
        // `mandatory`: a message that no queue takes comes back.
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let publish =
            self.rabbitmq.basic_publish("".into(), message.address.as_str().into(), options, &body, properties);
        match publish.await?.await? {
            Confirmation::Ack(None) => Ok(()),
            _ => Err(BrokerError::NotKept(message.id.clone())),
        }
    }
}

impl Publisher for Brokers {
    type Error = BrokerError;

    async fn publish(&mut self, messages: &[Message]) -> Result<(), BrokerError> {
        let (kafka, rabbitmq): (Vec<&Message>, Vec<&Message>) =
            messages.iter().partition(|message| message.destination == Destination::Kafka);
        self.to_kafka(&kafka).await?;
        for message in rabbitmq {
            self.to_rabbitmq(message).await?;
        }
        Ok(())
    }
}

/// Connects to RabbitMQ. Over TLS (`amqps://…`) only to a server whose certificate `authority`, in PEM, signed for its host, or a public one.
///
/// # Errors
/// When it is away, or refuses.
pub async fn connect(url: &str, authority: Option<&str>) -> Result<Connection, BrokerError> {
    let tls = OwnedTLSConfig { identity: None, cert_chain: authority.map(str::to_owned) };
    let connecting = Connection::connect_with_config(url, ConnectionProperties::default(), tls, default_runtime()?);
    let connected = tokio::time::timeout(CONNECT_WITHIN, connecting).await;
    Ok(connected.map_err(|_| BrokerError::TooLate("RabbitMQ"))??)
}

/// Declares a queue that outlives its server, whose messages that cannot be handled go to a queue of dead letters. Declaring it again changes nothing.
///
/// # Errors
/// When RabbitMQ is away, or has a queue of this name that is another one.
pub async fn declare(channel: &Channel, queue: &str) -> Result<(), BrokerError> {
    let durable = || QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let exchange = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(DEAD_LETTERS.into(), ExchangeKind::Fanout, exchange, FieldTable::default()).await?;
    channel.queue_declare(DEAD_LETTERS.into(), durable(), FieldTable::default()).await?;
    let bind = QueueBindOptions::default();
    channel.queue_bind(DEAD_LETTERS.into(), DEAD_LETTERS.into(), "".into(), bind, FieldTable::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(LongString::from(DEAD_LETTERS)));
    channel.queue_declare(queue.into(), durable(), arguments).await?;
    Ok(())
}

/// Kafka's client waits in the thread that asks.
async fn blocking(
    producer: FutureProducer,
    ask: impl FnOnce(&FutureProducer) -> Result<(), rdkafka::error::KafkaError> + Send + 'static,
) -> Result<FutureProducer, BrokerError> {
    let asked = tokio::task::spawn_blocking(move || ask(&producer).map(|()| producer)).await;
    Ok(asked.map_err(|_| BrokerError::TooLate("Kafka"))??)
}
