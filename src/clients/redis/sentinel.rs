//! Asks Sentinels where the primary is.

use tokio::time::Instant;

use super::{
    Command, Reply,
    address::Address,
    connection::{Access, Answers, timed_out},
    settings::Sentinels,
    words::refusal,
};
use crate::{api::Reason, clients::address::is_host, measure::MeasureError};

/// Where the primary is, as the first Sentinel says that answers.
pub(super) async fn primary(access: &Access, sentinels: &Sentinels, by: Instant) -> Result<Address, MeasureError> {
    let mut unknown = timed_out();
    for (turn, at) in sentinels.addresses.iter().enumerate() {
        let left = by.saturating_duration_since(Instant::now());
        let share = u32::try_from(sentinels.addresses.len() - turn + 1).unwrap_or(2);
        match ask(access, at, &sentinels.primary, Instant::now() + left / share).await {
            Ok(found) => return Ok(found),
            Err(why) => unknown = why.about(format_args!("the Sentinel at {at}")),
        }
    }
    Err(unknown)
}

/// Asks one Sentinel. No credential is sent to it.
async fn ask(access: &Access, at: &Address, primary: &str, by: Instant) -> Result<Address, MeasureError> {
    let mut connection = access.connect(at, by).await?;
    let command = Command::new(["SENTINEL", "GET-MASTER-ADDR-BY-NAME", primary]);
    let Answers { mut replies, broken } = access.exchange(&mut connection, &[command], by).await;
    let unknown = |reason, message: &str| MeasureError { reason, message: message.to_owned() };
    match replies.pop() {
        Some(Reply::Array(parts)) => {
            let parts: Vec<&str> = parts.iter().filter_map(Reply::as_str).collect();
            let found = match parts.as_slice() {
                [host, port] if is_host(host) => port.parse().ok().map(|port| Address::new(host, port)),
                _ => None,
            };
            found.ok_or_else(|| unknown(Reason::InvalidAnswer, "the answer is no address"))
        }
        Some(Reply::Nil) => Err(unknown(
            Reason::ConnectionStringInvalid,
            "it watches no primary of that name: correct the name at the end of the URL in the Secret",
        )),
        Some(Reply::Error(error)) if error.starts_with("NOAUTH") => Err(unknown(
            Reason::AuthenticationFailed,
            "it wants a password, which is not supported: user and password in the Secret are those of the servers that it watches",
        )),
        Some(Reply::Error(error)) if error.contains("nknown command") => {
            Err(unknown(Reason::SourceFailed, "it is no Sentinel: name its port (26379 by default), or write redis://"))
        }
        Some(Reply::Error(error)) => Err(refusal(&error)),
        Some(_) => Err(unknown(Reason::InvalidAnswer, "the answer is no address")),
        None => Err(broken.unwrap_or_else(timed_out)),
    }
}
