//! Fills the commands of handlers and shows them. No server is asked: keys are the user's, and Redis takes nothing back.

use super::{
    super::super::event::Event,
    super::{Done, DryRun, DryRunError},
    Commands, most_bytes_of_one_event,
};

/// Commands that are shown and not run.
pub(in crate::projector) struct RedisDryRun {
    commands: Commands,
    most_bytes: usize,
}

impl RedisDryRun {
    /// Of these handlers, for events of so many bytes at most.
    pub(in crate::projector) fn new(commands: Commands, max_event_bytes: u64) -> Self {
        Self { commands, most_bytes: most_bytes_of_one_event(max_event_bytes) }
    }
}

impl DryRun for RedisDryRun {
    async fn handle(&mut self, event: &Event) -> Result<Option<Done>, DryRunError> {
        let filled = self.commands.of(event, self.most_bytes).map_err(DryRunError::Event)?;
        if filled.is_empty() {
            return Ok(None);
        }
        let summary = if filled.len() == 1 { "1 command".to_owned() } else { format!("{} commands", filled.len()) };
        let line = |words: &[String]| words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        Ok(Some(Done { summary, lines: filled.iter().map(|command| line(&command.words)).collect() }))
    }

    async fn finish(&mut self) -> Result<(), DryRunError> {
        Ok(())
    }
}

/// A word as `redis-cli` takes it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "_-.:/{}+@,".contains(letter);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("{word:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_apart_whatever_they_hold() {
        for (word, shown) in [
            ("order:1", "order:1"),
            ("{shop/orders}:a", "{shop/orders}:a"),
            ("", "\"\""),
            ("two words", "\"two words\""),
            ("a\"b\n", "\"a\\\"b\\n\""),
        ] {
            assert_eq!(quoted(word), shown);
        }
    }
}
