//! Shows a broker who we are.

use bytes::Bytes;
use kacrab_protocol::generated::{SaslAuthenticateRequestData, SaslHandshakeRequestData};
use tokio::time::Instant;

use super::{
    connection::{Connection, text},
    error::{Code, KafkaError},
    scram::Scram,
    settings::{Mechanism, Sasl},
};
use crate::api::Reason;

/// Longer texts of a broker are cut.
const MOST_CHARACTERS: usize = 200;

/// Authenticates the connection.
///
/// # Errors
/// The broker refuses the mechanism or the user, or does not know the password itself.
pub(super) async fn authenticate(connection: &mut Connection, user: &Sasl, by: Instant) -> Result<(), KafkaError> {
    let mechanism = user.mechanism.as_str();
    let handshake = SaslHandshakeRequestData { mechanism: text(mechanism), ..Default::default() };
    let offered = connection.call(handshake, by).await?;
    if let Some(code) = Code::from_wire(offered.error_code) {
        let names: Vec<&str> = offered.mechanisms.iter().take(10).map(|name| name.as_str()).collect();
        let what = format!("the mechanism {mechanism} (this listener offers: {})", shown(&names.join(", "), user));
        return Err(KafkaError::of(code, &connection.place, &what));
    }
    if user.mechanism == Mechanism::Plain {
        send(connection, user, format!("\0{}\0{}", user.username, user.password), by).await?;
        return Ok(());
    }
    let nonce: String = (0..32).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect();
    let Some(scram) = Scram::new(user.mechanism, &user.username, &nonce) else { return Ok(()) };
    let refused = |place: &str, why: &str| {
        KafkaError::new(Reason::AuthenticationFailed, format!("{place}: the broker cannot be trusted: {why}"))
    };
    let first = send(connection, user, scram.first(), by).await?;
    let (proof, expected) = scram.prove(&first, &user.password).map_err(|why| refused(&connection.place, why))?;
    let last = send(connection, user, proof, by).await?;
    expected.verify(&last).map_err(|why| refused(&connection.place, why))
}

async fn send(connection: &mut Connection, user: &Sasl, message: String, by: Instant) -> Result<Bytes, KafkaError> {
    let request = SaslAuthenticateRequestData { auth_bytes: message.into_bytes().into(), ..Default::default() };
    let reply = connection.call(request, by).await?;
    let Some(code) = Code::from_wire(reply.error_code) else { return Ok(reply.auth_bytes) };
    let why = reply.error_message.as_ref().map_or("", |why| why.as_str());
    let what = format!("the broker refused the user ({})", shown(why, user));
    Err(KafkaError::of(code, &connection.place, &what))
}

/// A broker's words without line ends and without the password, which a careless broker might repeat.
fn shown(words: &str, user: &Sasl) -> String {
    let words: String = words.chars().filter(|c| !c.is_control()).take(MOST_CHARACTERS).collect();
    if words.contains(&user.password) { "no reason that can be repeated".to_owned() } else { words }
}
