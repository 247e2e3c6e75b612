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
/// The broker refuses the mechanism, the user or the token, or does not know the password itself.
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
        send(connection, user, format!("\0{}\0{}", user.username, user.secret), by).await?;
        return Ok(());
    }
    if user.mechanism == Mechanism::OauthBearer {
        return show_token(connection, user, by).await;
    }
    let nonce: String = (0..32).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect();
    let Some(scram) = Scram::new(user.mechanism, &user.username, &nonce) else { return Ok(()) };
    let distrusted = |place: &str, why: &str| {
        KafkaError::new(Reason::AuthenticationFailed, format!("{place}: the broker cannot be trusted: {why}"))
    };
    let first = send(connection, user, scram.first(), by).await?;
    let (proof, expected) = scram.prove(&first, &user.secret).map_err(|why| distrusted(&connection.place, why))?;
    let last = send(connection, user, proof, by).await?;
    expected.verify(&last).map_err(|why| distrusted(&connection.place, why))
}

/// RFC 7628: a broker that accepts the token says nothing. One that refuses it says why, and fails after one more byte.
async fn show_token(connection: &mut Connection, user: &Sasl, by: Instant) -> Result<(), KafkaError> {
    let said = send(connection, user, format!("n,,\u{1}auth=Bearer {}\u{1}\u{1}", user.secret), by).await?;
    if said.is_empty() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&said).into_owned();
    // Whatever it answers, it has refused.
    let _ = send(connection, user, "\u{1}".to_owned(), by).await;
    Err(refused(connection, user, &why))
}

fn refused(connection: &Connection, user: &Sasl, why: &str) -> KafkaError {
    let why = shown(why, user);
    if user.mechanism == Mechanism::OauthBearer {
        return KafkaError::new(
            Reason::AuthenticationFailed,
            format!(
                "{}: the broker refused the token ({why}): has it expired, or is it for others? Put a valid one under the key token of the Secret",
                connection.place
            ),
        );
    }
    KafkaError::of(Code::SASL_AUTHENTICATION_FAILED, &connection.place, &format!("the broker refused the user ({why})"))
}

async fn send(connection: &mut Connection, user: &Sasl, message: String, by: Instant) -> Result<Bytes, KafkaError> {
    let request = SaslAuthenticateRequestData { auth_bytes: message.into_bytes().into(), ..Default::default() };
    let reply = connection.call(request, by).await?;
    let Some(code) = Code::from_wire(reply.error_code) else { return Ok(reply.auth_bytes) };
    let why = reply.error_message.as_ref().map_or("", |why| why.as_str());
    if code == Code::SASL_AUTHENTICATION_FAILED {
        return Err(refused(connection, user, why));
    }
    let what = format!("the broker refused the user ({})", shown(why, user));
    Err(KafkaError::of(code, &connection.place, &what))
}

/// A broker's words without line ends and without the password or token, which a careless broker might repeat.
fn shown(words: &str, user: &Sasl) -> String {
    let words: String = words.chars().filter(|c| !c.is_control()).collect();
    if words.contains(&user.secret) {
        return "no reason that can be repeated".to_owned();
    }
    words.chars().take(MOST_CHARACTERS).collect()
}
