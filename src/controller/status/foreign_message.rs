//! What may be repeated of a message of another program: one line, without passwords and the like.

/// What is kept of a message of another program, in characters.
const LONGEST_MESSAGE: usize = 300;
/// The same of what a container said last. Workers of the built-in projector end with what to do, and an Event takes 1,024 bytes.
const LONGEST_LAST_WORDS: usize = 700;

/// On one line, without passwords, and not too long.
pub(super) fn one_line(message: &str) -> String {
    one_line_without(message, &['=', ':'])
}

/// The same of what a container said last.
pub(super) fn last_words(message: &str) -> String {
    shortened(message, &['=', ':'], LONGEST_LAST_WORDS)
}

/// On one line, where a password follows one of these characters.
pub(super) fn one_line_without(message: &str, assigning: &[char]) -> String {
    shortened(message, assigning, LONGEST_MESSAGE)
}

fn shortened(message: &str, assigning: &[char], longest: usize) -> String {
    let words: Vec<String> = message.split_whitespace().map(without_credentials).collect();
    let line = without_secrets(words.join(" "), assigning);
    if line.chars().count() <= longest {
        return line;
    }
    line.chars().take(longest - 1).chain(['…']).collect()
}

/// A URL without user and password.
fn without_credentials(word: &str) -> String {
    if let Some((scheme, rest)) = word.split_once("://")
        && let Some((_, host)) = rest.rsplit_once('@')
    {
        return format!("{scheme}://…@{host}");
    }
    word.to_owned()
}

/// What passwords and the like are called, or ends with: `DB_PASSWORD`, `client_secret`.
const SECRETS: [&str; 13] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "_pass",
    "-pass",
    "token",
    "secret",
    "authorization",
    "api_key",
    "api-key",
    "apikey",
    "access_key",
];

/// A line up to where the first value of a secret begins: where that value ends cannot be known.
fn without_secrets(line: String, assigning: &[char]) -> String {
    let lower = line.to_ascii_lowercase();
    let mut first: Option<usize> = None;
    for name in SECRETS {
        for (at, _) in lower.match_indices(name) {
            let value = value_of_secret(&line, at, at + name.len(), assigning);
            first = first.into_iter().chain(value).min();
        }
    }
    match first.and_then(|first| line.get(..first)) {
        Some(before) => format!("{before}…"),
        None => line,
    }
}

/// Where the value begins that the name between `start` and `end` announces, if it announces one: `name=value`, `"name": "value"`, `--name value`.
fn value_of_secret(line: &str, start: usize, end: usize, assigning: &[char]) -> Option<usize> {
    const QUOTES: [char; 4] = ['"', '\'', '`', '\\'];
    let (before, after) = (line.get(..start)?, line.get(end..)?);
    // `secret_key`, `secretKey` and `password2` are names of secrets; `passwordless` and `tokenizer` are other words.
    let longer = after.starts_with(|c: char| c == '_' || c.is_ascii_digit() || c.is_ascii_uppercase());
    let rest = if longer { after.trim_start_matches(|c: char| c == '_' || c.is_ascii_alphanumeric()) } else { after };
    let unquoted = rest.trim_start_matches(|c: char| c == ' ' || QUOTES.contains(&c));
    let assigned = unquoted.strip_prefix(assigning);
    let option = || {
        let word = before.rsplit(' ').next().unwrap_or_default();
        let value = rest.trim_start_matches(|c: char| matches!(c, ' ' | ',') || QUOTES.contains(&c));
        let is_option = word.trim_start_matches(|c: char| c == '[' || QUOTES.contains(&c)).starts_with('-');
        (is_option && value.len() < rest.len()).then_some(value)
    };
    let value = assigned.or_else(option)?;
    (!value.trim().is_empty()).then(|| line.len() - value.len())
}
