//! Keys that stand for those of the handlers while these are tried, and replies to their commands.
//!
//! The scripts are those of workers, with something before and after them that notes the replies and lets the keys expire, should they not be removed.

use std::{borrow::Cow, collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use crate::{
    clients::redis::{Client, Command, Reply, refusal},
    names::redis_state,
};

/// So many keys are removed by one round trip.
const REMOVED_AT_ONCE: usize = 500;

/// The keys, and what is noted of the last script.
pub(super) struct Scratch {
    prefix: String,
    /// All that may be there.
    keys: BTreeSet<String>,
    /// Those that the commands of the next script write.
    next: Vec<String>,
    /// When they expire, in milliseconds since 1970 by the server's clock; empty as long as no script has run.
    expires: String,
    replies: Vec<Reply>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self {
            prefix: format!("{}{:016x}:", redis_state::DRY_RUN, rand::random::<u64>()),
            keys: BTreeSet::new(),
            next: Vec::new(),
            expires: String::new(),
            replies: Vec::new(),
        }
    }

    /// What the names of all keys begin with. Holds no brace.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Notes which keys the next script writes.
    pub(super) fn expect(&mut self, keys: impl IntoIterator<Item = String>) {
        self.next.extend(keys);
    }

    /// What the commands of the last script replied, in their order.
    pub(super) fn take_replies(&mut self) -> Vec<Reply> {
        std::mem::take(&mut self.replies)
    }

    /// The script and its words, as they are sent.
    pub(super) fn wrap(
        &mut self,
        state: &str,
        script: &str,
        mut words: Vec<String>,
    ) -> (Cow<'static, str>, Vec<String>) {
        let keys: BTreeSet<String> = std::mem::take(&mut self.next).into_iter().collect();
        words.extend(keys.iter().cloned());
        words.extend([keys.len().to_string(), self.expires.clone()]);
        self.keys.insert(state.to_owned());
        self.keys.extend(keys);
        let script = [include_str!("scratch_begin.lua"), script, include_str!("scratch_end.lua")].concat();
        (script.into(), words)
    }

    /// Takes what was noted out of a reply, and returns what the script itself says; nothing where it makes no sense.
    pub(super) fn unwrap(&mut self, reply: Reply) -> Option<Reply> {
        let Reply::Array(parts) = reply else { return None };
        let Ok([expires, Reply::Array(replies), ended]) = <[Reply; 3]>::try_from(parts) else { return None };
        (self.expires, self.replies) = (expires.as_str()?.to_owned(), replies);
        Some(ended)
    }

    /// Removes all of them.
    ///
    /// # Errors
    /// Why some may be left, unless none was ever made as far as is known.
    pub(super) async fn remove(&mut self, client: &mut Client, deadline: Duration) -> Result<(), String> {
        let keys: Vec<String> = std::mem::take(&mut self.keys).into_iter().collect();
        for part in keys.chunks(REMOVED_AT_ONCE) {
            let commands: Vec<Command> = part.iter().map(|key| Command::about_key(1, ["UNLINK", key])).collect();
            let failed =
                client.ask(&commands, Instant::now() + deadline).await.into_iter().find_map(|reply| match reply {
                    Ok(Reply::Error(error)) if error.starts_with("NOPERM") => Some(format!(
                        "the user in the Secret may not remove keys: grant +unlink on ~{}*",
                        redis_state::DRY_RUN
                    )),
                    Ok(Reply::Error(error)) => Some(refusal(&error).message),
                    Ok(_) => None,
                    Err(error) => Some(error.message),
                });
            if let Some(why) = failed.filter(|_| !self.expires.is_empty()) {
                return Err(format!(
                    "{why}. Up to {} keys whose names begin with {} are left, and expire within an hour",
                    keys.len(),
                    self.prefix
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_comes_apart_from_what_the_script_says() {
        let mut scratch = Scratch::new();
        scratch.expect(["b".to_owned(), "a".to_owned(), "b".to_owned()]);
        let (script, words) = scratch.wrap("state", "return 1", vec!["w".to_owned()]);
        assert_eq!(words, ["w", "a", "b", "2", ""]);
        assert!(script.contains("local function run()\nreturn 1\nend"), "{script}");
        let text = |text: &str| Reply::Text(text.as_bytes().to_vec());
        let done = Reply::Array(vec![text("done")]);
        let reply = Reply::Array(vec![text("17"), Reply::Array(vec![Reply::Integer(2)]), done.clone()]);
        assert_eq!(scratch.unwrap(reply), Some(done.clone()));
        assert_eq!(scratch.take_replies(), [Reply::Integer(2)]);
        assert_eq!(scratch.wrap("state", "", Vec::new()).1, ["0", "17"], "the time stays, the keys are named once");
        assert_eq!(scratch.unwrap(done), None);
        assert_eq!(scratch.keys.len(), 3, "with the state");
    }
}
