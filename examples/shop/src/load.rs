//! Customers and a shopkeeper, as a load for the API: mixed commands at a steady rate, with a sale in the middle.
//!
//! Which command comes when is a function of its number ([`command`]), so that it can be repeated with the same key until it is answered: a client that heard
//! nothing does not know whether it was done, and asking again with the key is how it finds out.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Method, StatusCode, header::RETRY_AFTER};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

use crate::{
    json_client::{Answer, JsonClient},
    participants::OUT_OF_REACH,
};

/// How many products the shop has.
pub const PRODUCTS: u64 = 20;
/// Each so many commands, a client waits until the order summary shows its order, and reads it.
const AWAITED: u64 = 5;
/// Commands under way at once: those that come then wait, and are made up for.
const AT_ONCE: usize = 64;
/// How often what is due is sent.
const TICK: Duration = Duration::from_millis(50);
/// How long one command is tried.
const PATIENCE: Duration = Duration::from_secs(120);
/// The Projection that is awaited.
const SUMMARY: &str = "order-summary";

/// What is to be played.
#[derive(Clone, Debug)]
pub struct Score {
    /// Commands a second, before and after the sale.
    pub rate: f64,
    /// How many times as many come in the sale.
    pub sale: f64,
    /// How long each of the three parts lasts.
    pub part: Duration,
}

/// A request of a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Who asks.
    pub client: String,
    /// The idempotency key.
    pub key: String,
    /// What is asked for.
    pub name: &'static str,
    /// With which details.
    pub body: Value,
}

/// What became of a load.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Played {
    /// Commands that were done.
    pub accepted: u64,
    /// Commands that the shop's rules forbid.
    pub refused: u64,
    /// Requests that had to be repeated, since the API was away or had too much to do.
    pub repeated: u64,
    /// Commands without an answer, in words.
    pub failed: Vec<String>,
    /// Orders that the summary was said to show.
    pub shown: u64,
    /// Orders that it did not show in time, or of which that was not known.
    pub not_shown: u64,
    /// Orders that it was said to show, and did not.
    pub missing: Vec<String>,
}

impl Played {
    /// Whether all commands were answered, and no read model was said to show what it did not.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.failed.is_empty() && self.missing.is_empty()
    }

    fn add(&mut self, other: Self) {
        let Self { accepted, refused, repeated, failed, shown, not_shown, missing } = other;
        self.accepted += accepted;
        self.refused += refused;
        self.repeated += repeated;
        self.shown += shown;
        self.not_shown += not_shown;
        self.failed.extend(failed);
        self.missing.extend(missing);
    }
}

impl fmt::Display for Played {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepted, refused, repeated, failed, shown, not_shown, missing } = self;
        writeln!(
            formatter,
            "commands: {accepted} accepted, {refused} refused, {} unanswered; {repeated} repeated",
            failed.len()
        )?;
        write!(
            formatter,
            "orders that were awaited: {shown} shown, {not_shown} not in time, {} said to be shown and missing",
            missing.len()
        )?;
        failed.iter().chain(missing).take(20).try_for_each(|problem| write!(formatter, "\n  {problem}"))
    }
}

/// The command that adds a product.
#[must_use]
pub fn product(number: u64) -> Command {
    let body = json!({"sku": sku(number), "name": format!("Product {number}"), "price_cents": 900 + number * 137, "stock": 40});
    Command { client: "shopkeeper".to_owned(), key: format!("add-{number}"), name: "AddProduct", body }
}

fn sku(number: u64) -> String {
    format!("sku-{}", number % PRODUCTS)
}

/// The command with this number: of ten, seven place an order, one changes a price, one delivers stock, and one repeats the request before it.
#[must_use]
pub fn command(number: u64) -> Command {
    // Neighbours are of different products.
    let sku = sku(number * 7 + number / PRODUCTS);
    let shopkeeper = |name, body| Command { client: "shopkeeper".to_owned(), key: format!("n-{number}"), name, body };
    match number % 10 {
        9 => command(number - 1),
        7 => shopkeeper("ChangePrice", json!({"sku": sku, "price_cents": 900 + number % 5_000})),
        3 => shopkeeper("DeliverStock", json!({"sku": sku, "quantity": 10 + number % 20})),
        _ => {
            let customer = format!("customer-{}", number % 97);
            // Some want more than their credit, and some live where no carrier goes.
            let quantity = if number.is_multiple_of(31) { 60 } else { 1 + number % 3 };
            let country = if number.is_multiple_of(23) { OUT_OF_REACH } else { "Portugal" };
            let body = json!({"id": format!("n-{number}"), "customer": customer, "sku": sku, "quantity": quantity, "country": country});
            Command { client: customer, key: format!("n-{number}"), name: "PlaceOrder", body }
        }
    }
}

/// How many commands are due after this time.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn due(score: &Score, elapsed: Duration) -> u64 {
    let spent = |before: u32| elapsed.saturating_sub(score.part * before).min(score.part).as_secs_f64();
    (score.rate * (spent(0) + spent(1) * score.sale + spent(2))).floor() as u64
}

/// Plays a load against the API at this URL, and returns when the last command is answered.
pub async fn play(client: &JsonClient, url: &str, score: &Score) -> Played {
    let customer = Customer { client: client.clone(), url: url.to_owned() };
    let mut played = Played::default();
    for number in 0..PRODUCTS {
        played.add(customer.sends(&product(number), false).await);
    }
    let (started, free, mut sent) = (Instant::now(), Arc::new(Semaphore::new(AT_ONCE)), 0);
    let mut under_way = JoinSet::new();
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        let elapsed = started.elapsed();
        let all = due(score, elapsed);
        while sent < all {
            // Closed never.
            let Ok(permit) = Arc::clone(&free).acquire_owned().await else { break };
            let (customer, number) = (customer.clone(), sent);
            under_way.spawn(async move {
                let command = command(number);
                let awaits = command.name == "PlaceOrder" && number.is_multiple_of(AWAITED);
                let sent = customer.sends(&command, awaits).await;
                drop(permit);
                sent
            });
            sent += 1;
        }
        while let Some(ended) = under_way.try_join_next() {
            played.add(ended.unwrap_or_else(|error| failed(error.to_string())));
        }
        if elapsed >= score.part * 3 {
            break;
        }
    }
    while let Some(ended) = under_way.join_next().await {
        played.add(ended.unwrap_or_else(|error| failed(error.to_string())));
    }
    played
}

fn failed(problem: String) -> Played {
    Played { failed: vec![problem], ..Played::default() }
}

#[derive(Clone)]
struct Customer {
    client: JsonClient,
    url: String,
}

impl Customer {
    /// Sends a command until it is answered.
    async fn sends(&self, command: &Command, awaits: bool) -> Played {
        let Command { client, key, name, body } = command;
        let query = if awaits { format!("?await={SUMMARY}") } else { String::new() };
        let url = format!("{}/commands/{name}{query}", self.url);
        let headers = [("x-client", client.as_str()), ("idempotency-key", key.as_str())];
        let (until, mut repeated) = (Instant::now() + PATIENCE, 0);
        loop {
            let answer = self.client.ask(Method::POST, &url, &headers, body).await;
            let (wait, problem) = match answer {
                Ok(answer) if is_decided(&answer) => {
                    let shown = if awaits { self.reads(&answer, body).await } else { Played::default() };
                    let accepted = u64::from(answer.status == StatusCode::OK);
                    return Played { accepted, refused: 1 - accepted, repeated, ..shown };
                }
                Ok(answer) if is_wrong(&answer) => {
                    return Played { repeated, ..failed(format!("{name} {key}: {}", answer.body)) };
                }
                Ok(answer) => (retry_after(&answer), format!("{}: {}", answer.status, answer.body)),
                Err(error) => (None, error.to_string()),
            };
            if Instant::now() > until {
                return Played { repeated, ..failed(format!("{name} {key}: {problem}")) };
            }
            repeated += 1;
            sleep(wait.unwrap_or(TICK * 4)).await;
        }
    }

    /// Reads an order that was placed, where the summary is said to show it.
    async fn reads(&self, answer: &Answer, body: &Value) -> Played {
        if answer.body["decision"] != "accepted" {
            return Played::default();
        }
        if answer.body["shown"] != "yes" {
            return Played { not_shown: 1, ..Played::default() };
        }
        let id = body["id"].as_str().unwrap_or_default();
        let url = format!("{}/orders/{id}", self.url);
        match self.client.ask(Method::GET, &url, &[], &Value::Null).await {
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => {
                Played { missing: vec![format!("the order {id}")], ..Played::default() }
            }
            _ => Played { shown: 1, ..Played::default() },
        }
    }
}

/// Done, or forbidden for good. Another writer that was faster ten times is neither.
fn is_decided(answer: &Answer) -> bool {
    answer.status == StatusCode::OK || (answer.status == StatusCode::CONFLICT && answer.body["decision"] == "refused")
}

/// No better when it is repeated.
fn is_wrong(answer: &Answer) -> bool {
    matches!(answer.status, StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY)
}

fn retry_after(answer: &Answer) -> Option<Duration> {
    answer.headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_sale_brings_so_many_times_as_many() {
        let score = Score { rate: 2.0, sale: 10.0, part: Duration::from_secs(10) };
        let seconds = [(0, 0), (5, 10), (10, 20), (15, 120), (20, 220), (25, 230), (30, 240), (99, 240)];
        for (second, commands) in seconds {
            assert_eq!(due(&score, Duration::from_secs(second)), commands, "{second} s");
        }
    }

    #[test]
    fn commands_are_mixed_and_a_key_is_always_of_the_same_request() {
        let mut keys: BTreeMap<String, Command> = BTreeMap::new();
        let mut names: BTreeMap<&str, u64> = BTreeMap::new();
        for number in 0..1_000 {
            let command = command(number);
            *names.entry(command.name).or_default() += 1;
            let first = keys.entry(command.key.clone()).or_insert_with(|| command.clone());
            assert_eq!(*first, command);
        }
        assert_eq!(keys.len(), 900);
        assert_eq!(names, BTreeMap::from([("ChangePrice", 100), ("DeliverStock", 100), ("PlaceOrder", 800)]));
    }
}
